"""The pass: a model and a request in, the rewritten model and its report out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
