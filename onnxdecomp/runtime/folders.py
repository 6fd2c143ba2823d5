"""Where files are kept from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$ONNXDECOMP_CACHE`, else `$XDG_CACHE_HOME/onnxdecomp`, else `~/.cache/onnxdecomp`.

    A variable that is set to the empty string counts as unset (XDG base directory specification).
    """
    for variable, below in (("ONNXDECOMP_CACHE", ""), ("XDG_CACHE_HOME", "onnxdecomp")):
        if os.environ.get(variable):
            return Path(os.environ[variable]) / below
    return Path.home() / ".cache" / "onnxdecomp"
