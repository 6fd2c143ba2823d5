"""What a chain costs.

A Tucker-2 chain of a Conv with C and D channels, kernel k and ranks R and S costs, per position,
C·R at the input's positions and ∏k·R·S + S·D at the output's (Kim et al. 2016, arXiv:1511.06530, eq. 6).
A ConvTranspose meets every weight at each position of its input, so there ∏k·R·S counts at the input's.
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

    Where shapes are not known, the input is taken to be as many times the output as the strides say, and the
    output of a ConvTranspose as many times its input.
    """
    before, after = _usual_sizes(site)
    if site.sizes is not None and _fits(site) and all(math.prod(sizes) for sizes in site.sizes):
        before, after = site.sizes
    own = math.prod(before if site.adjoint else after) * (site.params or 1)
    return _macs(site, choice, before, after) / own


def _usual_sizes(site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The least whole sizes of an input and output that differ by the strides."""
    axes = len(site.kernel)
    strides = site.strides if len(site.strides) == axes else (1,) * axes
    large, small = (1, *strides), (1,) * (1 + axes)
    return (small, large) if site.adjoint else (large, small)


def _fits(site: Site) -> bool:
    """Whether the sizes have an axis for each of the kernel's: in a file that is damaged they may not."""
    return all(len(each) == 1 + len(site.kernel) for each in site.sizes or ())


def _macs(site: Site, choice: Choice, before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """Each link costs its parameters at every position of its output, that of a ConvTranspose of its input.

    `before` and `after` are (batch, *spatial): a link takes over the output's size on the axes it is wide on.
    """
    sizes, total = before, 0
    for link in links(site, choice):
        reached = tuple(after[i] if i - 1 in link.axes else size for i, size in enumerate(sizes))
        total += math.prod(sizes if site.adjoint else reached) * link.params(site.kernel)
        sizes = reached
    return total
