"""An ONNX file as it is: model, tensors, scopes and names, shapes, constant weights, sites and the survey."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
