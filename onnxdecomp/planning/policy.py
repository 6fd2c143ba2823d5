"""What a rank rule may choose at a site."""

from __future__ import annotations

from dataclasses import dataclass

from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError
from onnxdecomp.factors import METHODS
from onnxdecomp.ir import Site
from onnxdecomp.planning.methods import applicable

AUTO = "auto"


# What is weighed where no method is named.
DEFAULTS = ("tucker2", "tucker1", "svd")


@verified
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a rule may choose.

    An example is in docs/python.md under "Rewriting".

    Attributes:
        method: one of `METHODS` keeps the sites it does not fit; "auto" takes, per site, the one with the
            least weight error at no more MACs than the default's; None is the default: Tucker-2, or
            Tucker-1 where that fits better, for kernels wider than 1, and SVD for 1×1.
        min_channels: a group with fewer input or output channels gets no two-sided chain.
        align: ranks are multiples of it, but for exact channels.
        allow_slower: accept chains that save less than a fifth of the multiply-accumulates.
        linear: decompose Gemm and MatMul too, as "svd" and "auto" do anyway.

    Raises:
        UsageError: a value that cannot be obeyed.
    """

    method: str | None = None
    min_channels: int = 16
    align: int = 8
    allow_slower: bool = False
    linear: bool = False

    @property
    def wants_linear(self) -> bool:
        """Whether Gemm and MatMul are looked at."""
        return self.linear or self.method in ("svd", AUTO)

    def __post_init__(self) -> None:
        if self.method not in (None, AUTO, *METHODS):
            raise UsageError(f"`method` {self.method}: unknown; it is one of {', '.join((*METHODS, AUTO))}")
        for name, value in (("align", self.align), ("min_channels", self.min_channels)):
            if value < 1:
                raise UsageError(f"`{name}` {value}: must be at least 1")


def fitting_methods(site: Site, policy: Policy) -> tuple[str, ...] | str:
    """The methods `policy` allows for `site` whatever the ranks, or a sentence saying why there are none."""
    if site.obstacle is not None:
        return site.obstacle
    methods = applicable(site)
    allowed = [m for m in methods if policy.method in (m, AUTO) or (policy.method is None and m in DEFAULTS)]
    if not allowed:
        return f"{policy.method} does not fit a kernel of {'×'.join(map(str, site.kernel)) or 'a matrix'}"
    narrow = [channels < policy.min_channels for channels in site.group_channels]
    if not any(narrow):
        return tuple(allowed)
    if not all(narrow) and "tucker1" in allowed:
        return ("tucker1",)
    c_in, c_out = site.group_channels
    width = f"{c_in}→{c_out} channels" + (" a group" if site.groups != 1 else "")
    what = f"{policy.method} does not fit" if policy.method and not all(narrow) else "too small to pay"
    return f"{what}: {width}, and `min_channels` is {policy.min_channels}"


def kept_unasked(site: Site) -> str | None:
    """Why `site` is kept where nobody names it, or None."""
    if site.transform is None:
        return None
    return f"a fixed transform, {site.transform}: kept unless `only` or a `plan` takes it"


def weighed_methods(site: Site, policy: Policy) -> tuple[str, ...] | str:
    """The `fitting_methods` where nobody names the site, or a sentence saying why there are none."""
    methods = fitting_methods(site, policy)
    return methods if isinstance(methods, str) else kept_unasked(site) or methods
