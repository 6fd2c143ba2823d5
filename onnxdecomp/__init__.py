"""Tensor decomposition of trained CNNs: ONNX in, ONNX out.

>>> import onnxdecomp
>>> result = onnxdecomp.rewrite("in.onnx", 0.25)
>>> result.save("out.onnx")
"""

import lazy_loader as _lazy_loader

__version__ = "0.1.0"

__getattr__, _, __all__ = _lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    # What completion offers: the rooms, which importing makes attributes, are not public.
    return [*__all__, "__version__"]
