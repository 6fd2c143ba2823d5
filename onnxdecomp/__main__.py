"""`python -m onnxdecomp` is the command line."""

from onnxdecomp.cli import main

main()
