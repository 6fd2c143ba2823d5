"""What a chain costs.

A Tucker-2 chain of a Conv with C and D channels, kernel k and ranks R and S costs, per position,
C·R at the input's positions and ∏k·R·S + S·D at the output's (Kim et al. 2016, arXiv:1511.06530, eq. 6).
"""

from __future__ import annotations

import math

from onnxdecomp.factors import LinkShape, layout
from onnxdecomp.ir import Site
from onnxdecomp.planning.choice import Choice


def links(site: Site, choice: Choice) -> tuple[LinkShape, ...]:
    """The convolutions `choice` makes of `site`."""
    if site.channels is None or not site.groups:
        raise ValueError(f"{site.name}: channels or groups are not known")
    return layout(choice.method, choice.ranks, site.channels, site.groups, len(site.kernel))


def chain_params(site: Site, choice: Choice) -> int:
    """Elements of the chain's weights."""
    return sum(link.params(site.kernel) for link in links(site, choice))


def chain_macs(site: Site, choice: Choice) -> int | None:
    """Multiply-accumulates of one run of the chain, None where shapes are not known."""
    if site.sizes is None or not _fits(site):
        return None
    return _macs(site, choice, *site.sizes)


def macs_ratio(site: Site, choice: Choice) -> float:
    """The chain's multiply-accumulates over the site's own.

    Where shapes are not known, the input is taken to be as many times the output as the strides say.
    """
    axes = len(site.kernel)
    strides = site.strides if len(site.strides) == axes else (1,) * axes
    before: tuple[int, ...] = (1, *strides)
    after: tuple[int, ...] = (1,) * (1 + axes)
    if site.sizes is not None and _fits(site) and 0 not in site.sizes[1]:
        before, after = site.sizes
    return _macs(site, choice, before, after) / (math.prod(after) * (site.params or 1))


def _fits(site: Site) -> bool:
    """Whether the sizes have an axis for each of the kernel's: in a file that is damaged they may not."""
    return all(len(each) == 1 + len(site.kernel) for each in site.sizes or ())


def _macs(site: Site, choice: Choice, before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """Each link costs its parameters at every position of its output.

    `before` and `after` are (batch, *spatial): a link takes over the output's size on the axes it is wide on.
    """
    sizes, total = list(before), 0
    for link in links(site, choice):
        for axis in link.axes:
            sizes[1 + axis] = after[1 + axis]
        total += math.prod(sizes) * link.params(site.kernel)
    return total
