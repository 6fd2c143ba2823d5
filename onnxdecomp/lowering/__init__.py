"""Chains as nodes and tensors, and their place in the protobuf."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
