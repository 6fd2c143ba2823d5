"""What `onnxdecomp cache` prints."""

from __future__ import annotations

from rich.console import Group, RenderableType

from onnxdecomp.searching import CacheContents
from onnxdecomp.show.tables import Column, Listing
from onnxdecomp.show.text import escape, si

_COLUMNS = (
    Column(title="kind"),
    Column(title="what it is", holds="words", rank=1),
    Column(title="files", right=True),
    Column(title="size", right=True),
)


def cache_view(found: CacheContents, *, removed: bool) -> RenderableType:
    """The folder, and its files by kind; or what was removed from it."""
    folder = escape(str(found.folder))
    if removed:
        files, nbytes = (sum(getattr(each, what) for each in found.kinds) for what in ("files", "nbytes"))
        return f"removed {files} files, {si(nbytes, 'B')}, from {folder}"
    rows = [(each.kind, each.holds, str(each.files), si(each.nbytes, "B")) for each in found.kinds]
    return Group(f"{folder}\n", Listing(_COLUMNS, rows))
