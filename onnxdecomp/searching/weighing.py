"""Costs and losses of every choice at every site, measured or from the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxdecomp.errors import NothingSelectedError
from onnxdecomp.ir import Model, Survey
from onnxdecomp.planning import Unit, label
from onnxdecomp.runtime import cpu_name, feeds_shapes, gpus, onnxruntime
from onnxdecomp.sampling import Samples, sample_digests
from onnxdecomp.searching.cache import Cache, digest
from onnxdecomp.searching.candidates import find_candidates
from onnxdecomp.searching.costs import counted, measured
from onnxdecomp.searching.figures import Figures
from onnxdecomp.searching.probe import UNREACHED, output_losses, weight_losses
from onnxdecomp.searching.study import Study
from onnxdecomp.searching.surroundings import find_surroundings
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.weighed import Weighed
from onnxdecomp.timing import Setting, setting_engine

# Stands in the cache for a choice that cannot be taken: JSON knows no infinity.
_INFINITE = -1.0


def weigh(task: Task, study: Study | None) -> tuple[Weighed, list[str]]:
    """Costs and losses of every choice, and what is to be said of them.

    They are those that a study was begun with, where there is one; else measured, or from the cache.

    Raises:
        NothingSelectedError: no site can be decomposed.
        UsageError: the study weighs other choices.
    """
    found = task.found
    units = find_candidates(found, task.policy)
    if not units:
        raise NothingSelectedError("nothing to decompose: `onnxdecomp inspect` lists the reasons")
    start = study.start if study is not None else None
    if study is not None and start is not None:
        start.require_units(units, study.name)
        seconds, losses, notes = start.seconds, start.losses, list(start.notes)
    else:
        seconds, losses, notes = _measured(task, units)
    kind = task.goal.kind if task.goal.counted else None
    costs = counted(units, kind or "macs") if kind or seconds is None else seconds
    return Weighed(
        units=tuple(units),
        costs=tuple(costs),
        seconds=seconds,
        losses=losses,
        residual=tuple(find_surroundings(unit.lead, found).residual for unit in units),
        counts={what: tuple(counted(units, what)) for what in ("macs", "params")},
        totals=_totals(found) | {"size": float(found.model.nbytes())},
    ), notes


Measured = tuple[tuple[Figures, ...] | None, tuple[Figures, ...], list[str]]


def _measured(task: Task, units: Sequence[Unit]) -> Measured:
    """Seconds, losses and notes of every unit, measured or from the cache."""
    seconds, notes = None, []
    if task.timed:
        cache = Cache("costs", machine_of(task.setting))
        engine = setting_engine(task.setting)
        seconds = tuple(measured(task.found, units, engine, cache, task.progress))
        notes += [cache.note] if cache.note else []
    losses, loss_notes = _losses(task, units)
    return seconds, tuple(losses), [*notes, *loss_notes]


def open_memory(task: Task) -> Cache:
    """What searches for other goals have learnt of the model as a whole."""
    conditions = {
        "model": model_digest(task.model),
        "feeds": {name: list(shape) for name, shape in feeds_shapes(task.feeds).items()},
        "samples": samples_digest(task.samples.fitted) if task.samples is not None else None,
        "freeze": task.found.freeze,
    }
    return Cache("models", machine_of(task.setting) | conditions)


def samples_digest(samples: Samples) -> str:
    """A short name for samples, however they are ordered."""
    return digest(*sorted(sample_digests(samples)))


def _totals(found: Survey) -> dict[str, float]:
    """Multiply-accumulates of all sites, and parameters, a weight that several share counted once."""
    params: dict[object, int] = {}
    for anchor in found.anchors:
        params[anchor.weight.key if anchor.weight else anchor.site.name] = anchor.site.params or 0
    macs = sum(anchor.site.macs or 0 for anchor in found.anchors)
    return {"macs": float(macs), "params": float(sum(params.values()))}


def machine_of(setting: Setting) -> dict[str, object]:
    """What times in a setting depend on beside the model: JSON values."""
    return {
        "device": [gpu["name"] for gpu in gpus()] if setting.provider.gpu else cpu_name(),
        "onnxruntime": onnxruntime().__version__,
        "provider": setting.provider.name,
        "options": dict(setting.options),
        "threads": setting.threads,
    }


def _losses(task: Task, units: Sequence[Unit]) -> tuple[list[Figures], list[str]]:
    """From the cache where this model was probed with these samples before."""
    found = task.found
    if task.samples is None:
        losses = weight_losses(units, found.model.folder, task.progress)
        return losses, [
            f"{unit.name}: {own.note}" for unit, own in zip(units, losses, strict=True) if own.note
        ]
    fitted = task.samples.fitted
    keys = [[f"{unit.name} {label(choice)}" for choice in unit.choices] for unit in units]
    conditions = {
        "model": model_digest(found.model),
        "samples": samples_digest(fitted),
        "freeze": found.freeze,
    }
    cache = Cache("losses", conditions)
    if any(cache.get(key) is None for own in keys for key in own):
        probed = output_losses(found, units, fitted, task.scratch, task.progress)
        cache.put(
            {
                key: loss if math.isfinite(loss) else _INFINITE
                for own, losses in zip(keys, probed, strict=True)
                for key, loss in zip(own, losses.choices, strict=True)
            }
        )
        cache.put({unit.name: 1.0 for unit, own in zip(units, probed, strict=True) if own.note == UNREACHED})
    known = [Figures(choices=tuple(_known(cache, key) for key in own)) for own in keys]
    notes = [cache.note] if cache.note else []
    unreached = [unit.name for unit in units if cache.get(unit.name) is not None]
    return known, notes + [f"{name}: {UNREACHED}" for name in unreached]


def _known(cache: Cache, key: str) -> float:
    value = cache.get(key)
    return math.inf if value is None or value == _INFINITE else value


def model_digest(model: Model) -> str:
    """A short name for all the bytes a model consists of."""
    return digest(*(file.read_bytes() for file in sorted(model.files())))
