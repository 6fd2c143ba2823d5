"""Which decomposition, with which ranks: rules, what fits a site and what it costs, plans, the knapsack."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
