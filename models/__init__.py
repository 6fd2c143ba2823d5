"""Models to try the compiler on: third-party ONNX files to fetch, and networks to export from PyTorch."""

from __future__ import annotations

from models.corpus import Entry, entries, names
from models.errors import ModelsError, UsageError
from models.exporting import build, export
from models.fetching import fetch
from models.zoo import NETWORKS, Network

__all__ = [
    "NETWORKS",
    "Entry",
    "ModelsError",
    "Network",
    "UsageError",
    "build",
    "entries",
    "export",
    "fetch",
    "names",
]
