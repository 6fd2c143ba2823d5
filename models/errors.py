"""What this package raises.

ModelsError        the request failed: a download, a wrong hash, a file that cannot be written
└── UsageError     the request itself is wrong: an unknown name, a bad option, PyTorch not installed
"""

from __future__ import annotations


class ModelsError(Exception):
    """A model could not be fetched or exported; the message is one line."""


class UsageError(ModelsError):
    """The request cannot be met as it was made; the message is one line."""
