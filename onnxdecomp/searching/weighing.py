"""Costs and losses of every choice at every site, measured or from the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxdecomp.errors import NothingSelectedError
from onnxdecomp.ir import Model, Survey, survey
from onnxdecomp.planning import label
from onnxdecomp.runtime import Feeds, cpu_name, gpus, onnxruntime
from onnxdecomp.sampling import Samples, sample_digests
from onnxdecomp.searching.cache import Cache, digest
from onnxdecomp.searching.candidates import Unit, find_units
from onnxdecomp.searching.costs import counted, measured
from onnxdecomp.searching.probe import UNREACHED, Losses, output_losses, weight_losses
from onnxdecomp.searching.sizes import feeds_shapes, observe_sizes
from onnxdecomp.searching.surroundings import find_surroundings
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.weighed import Weighed
from onnxdecomp.timing import Setting, Subject, setting_engine, subject_feeds

# Stands in the cache for a choice that cannot be taken: JSON knows no infinity.
_INFINITE = -1.0


def weigh(task: Task, model: Model) -> tuple[Weighed, list[str]]:
    """Costs and losses of every choice, measured or from the cache.

    Raises:
        NothingSelectedError: no site can be decomposed.
    """
    feeds, _ = task_feeds(task, model)
    shapes = feeds_shapes(feeds)
    found = survey(
        model, input_shapes=shapes, freeze=task.freeze, fold_bn=True, linear=task.policy.wants_linear
    )
    found = observe_sizes(model, found, feeds)
    units = find_units(found, task.policy)
    if not units:
        raise NothingSelectedError("nothing to decompose: `onnxdecomp inspect` lists the reasons")
    notes: list[str] = []
    seconds = None
    if task.cost == "measured":
        engine = setting_engine(task.setting)
        cache = Cache("costs", _machine(task.setting))
        seconds = measured(units, found, model.proto.ir_version, engine, cache, task.track)
        notes += [cache.note] if cache.note else []
    losses, loss_notes = _losses(task, model, units)
    kind = task.goal.kind if task.goal.kind in ("macs", "params", "size") else None
    costs = counted(units, kind or "macs") if kind or seconds is None else seconds
    return Weighed(
        units=tuple(units),
        costs=tuple(costs),
        seconds=tuple(seconds) if seconds is not None else None,
        losses=tuple(losses),
        residual=tuple(find_surroundings(unit.job.anchors[0], found).residual for unit in units),
        counts={what: tuple(counted(units, what)) for what in ("macs", "params")},
        totals=_totals(found) | {"size": float(model.nbytes())},
    ), [*notes, *loss_notes]


def open_memory(task: Task, model: Model) -> Cache:
    """What searches for other goals have learnt of the model as a whole."""
    feeds, _ = task_feeds(task, model)
    conditions = {
        "model": model_digest(model),
        "feeds": {name: list(shape) for name, shape in feeds_shapes(feeds).items()},
        "samples": _samples_digest(task.fitted) if task.fitted is not None else None,
        "freeze": task.freeze,
    }
    return Cache("models", _machine(task.setting) | conditions)


def _samples_digest(samples: Samples) -> str:
    return digest(*sorted(sample_digests(samples)))


def _totals(found: Survey) -> dict[str, float]:
    """Multiply-accumulates of all sites, and parameters, a weight that several share counted once."""
    params: dict[object, int] = {}
    for anchor in found.anchors:
        params[anchor.weight.key if anchor.weight else anchor.site.name] = anchor.site.params or 0
    macs = sum(anchor.site.macs or 0 for anchor in found.anchors)
    return {"macs": float(macs), "params": float(sum(params.values()))}


def task_feeds(task: Task, model: Model) -> tuple[Feeds, int]:
    """One set of inputs as the model is to be fast on, and its batch."""
    return subject_feeds(task_subject(task, model), task.setting.batch, task.input_shapes, task.fitted)


def task_subject(task: Task, model: Model) -> Subject:
    """The model as something to time."""
    return Subject(name=task.path.name, path=task.path, proto=model.proto, files=frozenset(model.files()))


def _machine(setting: Setting) -> dict[str, object]:
    return {
        "device": [gpu["name"] for gpu in gpus()] if setting.provider.gpu else cpu_name(),
        "onnxruntime": onnxruntime().__version__,
        "provider": setting.provider.name,
        "options": dict(setting.options),
        "threads": setting.threads,
    }


def _losses(task: Task, model: Model, units: Sequence[Unit]) -> tuple[list[Losses], list[str]]:
    """From the cache where this model was probed with these samples before."""
    if task.fitted is None:
        return weight_losses(units, model.folder, task.track), []
    keys = [[f"{unit.name} {label(choice)}" for choice in unit.choices] for unit in units]
    samples = _samples_digest(task.fitted)
    conditions = {"model": model_digest(model), "samples": samples, "freeze": task.freeze}
    cache = Cache("losses", conditions)
    if any(cache.get(key) is None for own in keys for key in own):
        found = output_losses(units, model, task.fitted, task.scratch, freeze=task.freeze, track=task.track)
        cache.put(
            {
                key: loss if math.isfinite(loss) else _INFINITE
                for own, losses in zip(keys, found, strict=True)
                for key, loss in zip(own, losses.choices, strict=True)
            }
        )
        cache.put({unit.name: 1.0 for unit, own in zip(units, found, strict=True) if own.note == UNREACHED})
    known = [Losses(choices=tuple(_known(cache, key) for key in own)) for own in keys]
    notes = [cache.note] if cache.note else []
    unreached = [unit.name for unit in units if cache.get(unit.name) is not None]
    return known, notes + [f"{name}: {UNREACHED}" for name in unreached]


def _known(cache: Cache, key: str) -> float:
    value = cache.get(key)
    return math.inf if value is None or value == _INFINITE else value


def model_digest(model: Model) -> str:
    """A short name for all the bytes a model consists of."""
    return digest(*(file.read_bytes() for file in sorted(model.files())))
