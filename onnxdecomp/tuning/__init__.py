"""Gradients: ONNX graphs as functions of PyTorch, what is trained to which targets, and the loop."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
