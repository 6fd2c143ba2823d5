"""Tensor decomposition of trained CNNs: ONNX in, ONNX out.

>>> import onnxdecomp
>>> result = onnxdecomp.rewrite("in.onnx", 0.25)
>>> result.save("out.onnx")
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
