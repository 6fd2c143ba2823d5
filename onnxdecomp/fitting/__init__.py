"""Factors for a model's sites: plain ones of each distinct weight, and closed form from samples."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
