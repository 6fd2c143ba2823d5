"""The command line: parse, call, print, set the exit code."""

from onnxdecomp.cli.app import main

__all__ = ["main"]
