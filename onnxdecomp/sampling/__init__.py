"""Samples of a model's inputs: where they come from, what becomes of their bytes, and which are held out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
