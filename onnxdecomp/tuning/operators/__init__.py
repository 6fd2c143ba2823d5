"""Operators of ONNX as functions of PyTorch, by family, and the one table of them."""
