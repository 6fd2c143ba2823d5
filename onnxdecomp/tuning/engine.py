"""PyTorch, where it is installed and can do what is asked."""

from __future__ import annotations

import importlib
import os
import re

from onnxdecomp.errors import MissingExtraError, UsageError
from onnxdecomp.stopping import uninterrupted

_OLDEST = (2, 6)


def require_torch(device: str) -> None:
    """Refuse to go on where PyTorch, or the device, cannot be used.

    Raises:
        MissingExtraError: it is not installed, or too old.
        UsageError: it has no such device.
    """
    how = 'pip install "onnxdecomp[torch]"'
    try:
        # What is raised while an extension module starts, of a signal too, would be blamed on the import.
        with uninterrupted():
            torch = importlib.import_module("torch")
    except ImportError as error:
        raise MissingExtraError(f"tuning needs PyTorch, which is not installed: {how}") from error
    version = tuple(int(part) for part in re.findall(r"\d+", str(torch.__version__))[:2])
    if version < _OLDEST:
        raise MissingExtraError(f"tuning needs PyTorch 2.6 or later, this is {torch.__version__}: {how}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"`device` cuda: PyTorch {torch.__version__} finds none here; leave it out")


def processes() -> int:
    """How many processes `torchrun` has started, this one among them; 1 where it has not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_leader() -> bool:
    """Whether this process is the one that writes: the first of those that `torchrun` has started."""
    return int(os.environ.get("RANK", "0")) == 0
