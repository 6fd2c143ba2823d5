"""One site at a time: its factors fitted to what it sees, and what their error does to the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np

from onnxdecomp.factors import Floats, factorise
from onnxdecomp.fitting import (
    Arrangement,
    Calibration,
    Head,
    LowRank,
    Moments,
    Prepared,
    Problem,
    Target,
    Workers,
    arrangement,
    blocks,
    fit_low_rank,
    flattened,
    require_sight,
    shifts_of,
    start,
)
from onnxdecomp.ir import Array, NotFiniteError, Survey, read_finite_weight
from onnxdecomp.planning import Choice, Unit
from onnxdecomp.progress import Progress, tracked
from onnxdecomp.sampling import Samples
from onnxdecomp.searching.figures import Figures
from onnxdecomp.searching.losses import Core, find_core, transfer

# Shares of the channels at which a site's error is sent through the rest of the model.
_PROBED = (0.125, 0.25, 0.5)
# Runs of the walk that are sent through: of these no moments go into the factors.
_MOST_RUNS = 4
_RIDGE = 1e-2
_ROUNDS = 5
UNREACHED = "its error cannot be sent through the model: counted as if it reached the outputs whole"


def weight_losses(units: Sequence[Unit], folder: Path, progress: Progress) -> list[Figures]:
    """Without samples: the squared relative error of the weights stands for that of the outputs.

    Args:
        units: whose choices are weighed, several side by side; see `Workers`.
        folder: of their external data.
        progress: told of every unit that is done.

    Raises:
        RunError: the backend set by `joblib.parallel_config` failed.
    """
    with Workers() as workers:
        cores = workers.run(partial(_weight_core, _weight(unit, folder), unit.groups) for unit in units)
        told = tracked(units, "reading spectra", progress, attrgetter("name"))
        return [_weight_figures(unit, core) for unit, core in zip(told, cores, strict=True)]


def _weight(unit: Unit, folder: Path) -> Floats | str:
    try:
        return read_finite_weight(unit.lead, folder)
    except NotFiniteError as error:
        return str(error)


def _weight_core(weight: Floats | str, groups: int) -> Core | str:
    if isinstance(weight, str):
        return weight
    return find_core(weight, None if groups == 1 else [np.eye(weight.shape[1])] * groups)


def _weight_figures(unit: Unit, core: Core | str, note: str | None = None) -> Figures:
    if isinstance(core, str):
        return Figures(choices=(np.inf,) * len(unit.choices), note=core)
    return Figures(choices=tuple(core.lost(choice) for choice in unit.choices), note=note)


def output_losses(
    found: Survey,
    units: Sequence[Unit],
    samples: Samples,
    scratch: Path | None,
    progress: Progress,
) -> list[Figures]:
    """What every choice does to the outputs, one site at a time, on samples its factors are not fitted to.

    The model is walked through site by site; what is fitted to one of them is fitted side by side, see
    `Workers`.

    Args:
        found: the survey of the original.
        units: of its sites, in graph order.
        samples: of its inputs, two or more.
        scratch: folder for activations; None is the system's.
        progress: told of every unit that is done.

    Raises:
        RunError: ONNX Runtime does not run the model, or the backend set by `joblib.parallel_config` failed.
        UsageError: the samples say nothing of any unit.
    """
    losses = []
    # Workers first: their processes may be copies of this one, which has neither threads nor sessions yet.
    with (
        Workers() as workers,
        Calibration(found, samples, scratch, sequential=False) as calibration,
    ):
        for unit, prepared in calibration.visits(units, "probing sites", progress):
            losses.append(
                Figures(choices=(np.inf,) * len(unit.choices), note=prepared)
                if isinstance(prepared, str)
                else _probe(unit, prepared, calibration, workers)
            )
    require_sight("samples", [each.note for each in losses])
    return losses


def _probe(unit: Unit, prepared: Prepared, calibration: Calibration, workers: Workers) -> Figures:
    target = prepared.target
    if not isinstance(target, Target):
        return _weight_figures(unit, _weight_core(prepared.weight, unit.groups), note=UNREACHED)
    moments = target.rest(0)
    problems = [Problem.of(m, centred=target.centred) for m in moments]
    channels = prepared.weight.shape[1]
    covariances = [problem.channel_covariance(len(problem.s) // channels) for problem in problems]
    core = find_core(prepared.weight, covariances)
    probed = _probed_choices(unit)
    points = []
    for choice, fitted in zip(probed, _fitted(probed, target, problems, moments, workers), strict=True):
        change = partial(changed, weight=prepared.weight, groups=unit.groups, fitted=fitted)
        points.append((choice, calibration.output_errors(prepared.heads, change, _MOST_RUNS)))
    curve = transfer([(core.lost(choice), loss) for choice, loss in points])
    return Figures(choices=tuple(curve(core.lost(choice)) for choice in unit.choices), measured=tuple(points))


def _probed_choices(unit: Unit) -> list[Choice]:
    """The choices nearest to the shares that are probed, in both modes alike."""
    channels = unit.sites[0].group_channels

    def distance(choice: Choice, share: float) -> tuple[float, str]:
        one = choice.method == "svd"
        own = [(choice.ranks.output or 0) / min(channels)] if one else choice.ranks.shares(channels)
        return sum(abs(np.log(each / share)) for each in own), choice.method

    nearest = [min(unit.choices, key=lambda choice: distance(choice, share)) for share in _PROBED]
    return list(dict.fromkeys(nearest))


def _fitted(
    choices: Sequence[Choice],
    target: Target,
    problems: Sequence[Problem],
    moments: Sequence[Moments],
    workers: Workers,
) -> list[tuple[list[Floats], list[Floats | None]]]:
    """For each choice Ŵ (D, P) of each group, by least squares at a middling ridge, and their shifts."""
    slim = replace(target, moments=())  # what has to travel to a worker
    kernel, channels = target.weight.shape[2:], target.weight.shape[1]
    placed = [arrangement(choice, kernel, channels) for choice in choices]
    calls = (partial(_products, *each, slim, problems) for each in zip(choices, placed, strict=True))
    return [
        (products, shifts_of(moments, products, target.centred and own is not None))
        for products, own in zip(workers.run(calls), placed, strict=True)
    ]


def _products(
    choice: Choice, placed: Arrangement | None, target: Target, problems: Sequence[Problem]
) -> list[Floats]:
    """Ŵ (D, P) of each group."""
    if placed is None:
        exact = factorise(choice.method, target.weight, choice.ranks, len(problems)).reconstruct()
        return flattened(exact, len(problems))
    return [placed.restored(part.weight()) for part in low_rank(placed, target, problems)]


def low_rank(placed: Arrangement, target: Target, problems: Sequence[Problem]) -> list[LowRank]:
    """The low-rank weight of each group by least squares at a middling ridge.

    Args:
        placed: how the choice meets patches.
        target: what the weights are fitted to; its moments are not read.
        problems: of each group, from these.
    """
    parts = []
    for problem, weight in zip(problems, flattened(target.weight, len(problems)), strict=True):
        arranged, own = problem.reordered(placed.order), placed.arranged(weight)
        inner = start(arranged, placed.taps, own, placed.ranks)
        parts.append(fit_low_rank(arranged.ridged(own, _RIDGE), placed.taps, inner, placed.ranks[1], _ROUNDS))
    return parts


def changed(
    head: Head,
    x: Array,
    y: Array,
    *,
    weight: Floats,
    groups: int,
    fitted: tuple[Sequence[Floats], Sequence[Floats | None]],
) -> Array:
    """The output y of a site with other weights in the place of its own.

    Args:
        head: of the site.
        x: the site's input.
        y: its output, of the same run.
        weight: the original.
        groups: of channels.
        fitted: Ŵ (D, P) and shift (D,) of each group.
    """
    products, shifts = fitted
    old = flattened(weight.astype(np.float32), groups)
    differences = [new.astype(np.float32) - own for new, own in zip(products, old, strict=True)]
    rows: list[list[Floats]] = [[] for _ in range(groups)]
    for i, (patch, _) in enumerate(blocks(head, weight, x, y, groups)):
        group = i % groups
        change = patch @ differences[group].T
        shift = shifts[group]
        rows[group].append(change if shift is None else change + shift.astype(np.float32))
    whole = np.concatenate([np.concatenate(parts) for parts in rows], axis=1) * np.float32(head.alpha)
    linear = head.anchor.site.linear
    moved = y if linear else np.moveaxis(y, 1, -1)
    result = moved + whole.reshape(moved.shape).astype(y.dtype)
    return np.ascontiguousarray(result if linear else np.moveaxis(result, -1, 1))
