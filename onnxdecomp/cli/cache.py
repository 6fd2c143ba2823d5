"""`onnxdecomp cache`: what is kept from one search to the next."""

from __future__ import annotations

from typing import Annotated

import onnxdecomp
from onnxdecomp import show
from onnxdecomp.cli.options import OUTPUT, Debug, JsonFile, option
from onnxdecomp.cli.targets import Targets
from onnxdecomp.cli.telling import Voice


def cache(
    clear: Annotated[
        bool, option(OUTPUT, "--clear", help="Remove what searches have kept, and no other file.")
    ] = False,
    json_file: JsonFile = None,
    debug: Debug = False,
) -> None:
    """Show what searches keep for the next ones, or clear it.

    It lies in $ONNXDECOMP_CACHE, else in $XDG_CACHE_HOME/onnxdecomp, else in ~/.cache/onnxdecomp.
    """
    targets = Targets({}, json_file)
    found = onnxdecomp.clear_cache() if clear else onnxdecomp.inspect_cache()
    targets.json(json_file, found.to_dict)
    targets.console(Voice()).print(show.cache_view(found, removed=clear))
