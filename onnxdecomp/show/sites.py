"""How tables name a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxdecomp.show.tables import Column
from onnxdecomp.show.text import UNKNOWN

if TYPE_CHECKING:
    from onnxdecomp.ir import Site


SITE = Column(title="site", holds="names")


def geometry(site: Site) -> tuple[str, str]:
    """Kernel and channels in words."""
    kernel = "×".join(map(str, site.kernel)) or (site.op if site.linear else UNKNOWN)
    kernel += " transposed" if site.adjoint else ""
    channels = f"{site.channels[0]}→{site.channels[1]}" if site.channels else UNKNOWN
    return kernel, channels + (f" /{site.groups}" if site.groups not in (1, None) else "")
