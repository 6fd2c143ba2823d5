"""Decompositions of one convolution weight, one file each; all produce a `Chain`."""

from onnxdecomp.factors.chain import Chain, Link
from onnxdecomp.factors.tucker import factorise

__all__ = ["Chain", "Link", "factorise"]
