"""Where models are measured: execution provider, threads, batch, precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import Engine, Provider, find_providers

# More threads than any machine has only wait for each other; ONNX Runtime would start them all the same.
_MOST_THREADS = 1024
_LARGEST_BATCH = 2**20

PRECISIONS = ("fp32", "fp16")


@abridged
@verified
@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where models are measured.

    An example is in docs/python.md under "Timing".

    Attributes:
        provider: the execution provider.
        options: of that provider.
        threads: of the CPU.
        batch: samples per run; None is what the models declare, or 1.
        precision: of the models' floats: "fp32" as they are, "fp16" converted.

    Raises:
        UsageError: a value that cannot be obeyed.
    """

    provider: Provider
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    batch: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        _require_number("threads", self.threads, _MOST_THREADS)
        _require_number("batch", self.batch, _LARGEST_BATCH)
        _require_precision(self.precision)


def _require_number(parameter: str, number: int | None, highest: int) -> None:
    if number is not None and not 0 < number <= highest:
        raise UsageError(f"`{parameter}` {number}: give a number from 1 to {highest}")


def _require_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"`precision` {precision}: there are {', '.join(PRECISIONS)}")


@verified
def settings(
    providers: str | Sequence[str] = ("cpu",),
    *,
    options: Mapping[str, str] = {},
    threads: int | Sequence[int] = (1,),
    batches: int | Sequence[int | None] | None = None,
    precision: str = "fp32",
    cuda_graph: bool = False,
) -> list[Setting]:
    """Every combination; a GPU takes the first number of threads only.

    cuDNN's search is pinned to HEURISTIC, which is the same on every run, and TF32 is on as by ONNX Runtime's
    default, unless `options` say otherwise.

    An example is in docs/python.md under "Timing".

    Args:
        providers: short names of execution providers, or one alone; those that this ONNX Runtime lacks are
            left out.
        options: of the providers other than the CPU.
        threads: of the CPU; a number or several.
        batches: samples per run, a number or several; None is what the models declare, or 1.
        precision: "fp32", or "fp16" on GPUs.
        cuda_graph: replay a captured CUDA graph.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        UsageError: no such provider, or none that this ONNX Runtime has; half precision, a CUDA graph or
            options are asked of a provider that has none.
    """
    usable, _ = find_providers([providers] if isinstance(providers, str) else providers)
    sizes = [batches] if batches is None or isinstance(batches, int) else list(batches)
    counts = [threads] if isinstance(threads, int) else list(threads)
    for name, given, highest in (("threads", counts, _MOST_THREADS), ("batches", sizes, _LARGEST_BATCH)):
        if not given:
            raise UsageError(f"`{name}` is empty: give one or more")
        for number in given:
            _require_number(name, number, highest)
    _require_precision(precision)
    if options and all(each.short == "cpu" for each in usable):
        raise UsageError("`options`: the CPU provider has none")
    if precision == "fp16" and not all(each.gpu for each in usable):
        raise UsageError("`precision` fp16 is for GPUs: on a CPU ONNX Runtime casts back to fp32")
    if cuda_graph and any(each.short != "cuda" for each in usable):
        raise UsageError("`cuda_graph` is for `providers` cuda")
    found = []
    for provider, batch in product(usable, sizes):
        own = dict(options) if provider.short != "cpu" else {}
        if provider.short == "cuda":
            own = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "1"} | own
            own |= {"enable_cuda_graph": "1"} if cuda_graph else {}
        found += [
            Setting(provider=provider, options=own, threads=count, batch=batch, precision=precision)
            for count in (counts[:1] if provider.gpu else counts)
        ]
    return found


def setting_engine(setting: Setting) -> Engine:
    """How to run models in a setting: as a program would that knows nothing of their inputs' sizes."""
    return Engine(provider=setting.provider.name, options=dict(setting.options), threads=setting.threads)
