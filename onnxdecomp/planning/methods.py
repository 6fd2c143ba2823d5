"""Which decompositions fit a site, and how far their ranks go."""

from __future__ import annotations

import math

from onnxdecomp.ir import Site


def applicable(site: Site) -> tuple[str, ...]:
    """The methods that can carry out `site` at all; the default comes first."""
    if not site.kernel or math.prod(site.kernel) == 1:
        return ("svd",)
    axes = len(site.kernel)
    splits = site.separable and axes > 1 and site.kernel[0] > 1 and math.prod(site.kernel[1:]) > 1
    return (
        "tucker2",
        "tucker1",
        *(("spatial", "cp") if splits else ()),
        *(("cp3",) if site.separable else ()),
    )


def rank_limits(site: Site, method: str) -> tuple[int, int]:
    """The largest ranks (in, out) of `method` that mean anything; above the last, a chain is exact."""
    c_in, c_out = site.group_channels
    if method == "svd":
        return (min(c_in, c_out),) * 2
    if method == "spatial":
        return (min(c_in * site.kernel[0], c_out * math.prod(site.kernel[1:])),) * 2
    if method in ("cp", "cp3"):
        modes = (c_in, c_out, *(site.kernel if method == "cp" else (math.prod(site.kernel),)))
        return (math.prod(modes) // max(modes),) * 2
    return c_in, c_out
