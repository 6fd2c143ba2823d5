"""Ranks from a goal: what every choice costs and loses, and which of them to take."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
