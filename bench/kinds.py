"""Ways to make a model faster without training that compete on the same samples.

Kinds of factors, from the least to the most that samples say of them:

* plain: of the weights alone;
* whitened: HOOI of W·Σ^½, with Σ the channel covariance of a Conv's input in the original model, no refit;
* fitted: by least squares to a Conv's inputs and outputs in the original model (symmetric);
* sequential: likewise, but with the inputs that the model rewritten so far gives (asymmetric).

And ONNX Runtime's own quantisation to int8, static and dynamic.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from onnxdecomp.factors import Floats
from onnxdecomp.fitting import (
    Calibration,
    Factors,
    Problem,
    Target,
    arrangement,
    chain_of,
    find_errors,
    fit_low_rank,
    flattened,
    start,
)
from onnxdecomp.ir import Model, load, read_finite_weight, survey
from onnxdecomp.lowering import Splicer
from onnxdecomp.planning import Plan, Policy, Unit
from onnxdecomp.progress import Progress, tracked
from onnxdecomp.rewriting import decided_units
from onnxdecomp.sampling import Samples

FACTORS = ("plain", "whitened", "fitted", "sequential")
INT8 = ("int8", "int8_per_channel")
# Share of the mean variance added to a channel covariance: dead channels would make it singular.
_FLOOR = 1e-6
_INT8_BATCH = 16


class Symmetric(Calibration):
    """Fits to inputs from the original model: what is rewritten has no influence on what follows."""

    def _install(self, unit: Unit, outcome: Factors) -> None:
        """Go on with the original's sites."""


class Whitened(Symmetric):
    """The leading directions of W·Σ^½ as factors, with the core that is best under Σ alone."""

    def _fit(self, unit: Unit) -> Factors | str:
        weight = read_finite_weight(unit.lead, self._model.folder)
        (choice,) = unit.choices
        heads = [self._head(anchor) for anchor in unit.anchors]
        usable = [head for head in heads if not isinstance(head, str)]
        target = self._target(unit, weight, usable)
        placed = arrangement(choice, weight.shape[2:], weight.shape[1])
        assert len(usable) == len(heads) and isinstance(target, Target) and placed is not None
        assert placed.order is None  # the taps of Tucker chains share the input factor
        problems = [
            _channel_problem(each, flat, placed.taps)
            for each, flat in zip(target.wholes(), flattened(weight, target.groups), strict=True)
        ]
        parts = [
            fit_low_rank(
                problem, placed.taps, start(problem, placed.taps, flat, placed.ranks), placed.ranks[1], 0
            )
            for problem, flat in zip(problems, flattened(weight, target.groups), strict=True)
        ]
        exact = chain_of(choice, parts, weight.shape)
        dtype = helper.tensor_dtype_to_np_dtype(unit.weight.data_type)
        stored = exact.cast(dtype)
        shift = _lost_mean(target, weight - stored.reconstruct())
        return Factors(
            choice,
            stored,
            find_errors(weight, exact, stored, dtype),
            biases=tuple(head.bias + head.scale * shift for head in usable) if target.centred else None,
        )


def _channel_problem(moments: Any, weight: Floats, taps: int) -> Problem:
    """Minimise ‖(W − Ŵ)(I ⊗ Σ)^½‖: S = I ⊗ Σ and T = W S."""
    covariance = Problem.of(moments, centred=True).channel_covariance(taps)
    channels = len(covariance)
    covariance.flat[:: channels + 1] += _FLOOR * np.trace(covariance) / channels
    t = (weight.reshape(-1, channels) @ covariance).reshape(weight.shape)
    s = np.asarray(np.kron(np.eye(taps), covariance), np.float64)
    return Problem(s, t, float((t * weight).sum()))


def _lost_mean(target: Target, difference: Floats) -> Floats:
    """What a change of the weight takes from the mean outputs: the covariance says nothing of means."""
    pairs = zip(target.wholes(), flattened(difference, target.groups), strict=True)
    return np.concatenate([flat @ moments.x / moments.count for moments, flat in pairs])


def carry_out(path: Path, plan: Plan, kind: type[Calibration], samples: Samples, progress: Progress) -> Model:
    """The model at `path` with the chains of `plan`, their factors from `kind`."""
    model = load(path)
    found = survey(model, input_shapes={}, freeze=False, fold_bn=True, linear=False)
    decisions = {anchor.site.name: plan.sites.get(anchor.site.name, "kept") for anchor in found.anchors}
    units, splicer = decided_units(found, decisions, Policy()), Splicer(found, None)
    with kind(found, samples, None) as calibration:
        outcomes = calibration.fit_all(units)
        for unit, outcome in zip(
            tracked(units, "fitting", progress, attrgetter("name")), outcomes, strict=True
        ):
            assert isinstance(outcome, Factors), outcome
            splicer.install(unit.anchors, outcome.chain, outcome.biases)
    return splicer.finish()


class _Reader:
    """Samples as ONNX Runtime's calibration reads them."""

    def __init__(self, samples: Samples) -> None:
        self._feeds = samples.batches(_INT8_BATCH)

    def get_next(self) -> Any:
        """The next feed, None after the last."""
        return next(self._feeds, None)


def quantise(path: Path, out: Path, samples: Samples, *, per_channel: bool) -> None:
    """Write the model at `path` in int8: QDQ, static, ONNX Runtime's defaults for all the rest.

    Its preprocessing, which folds BatchNormalizations, comes first, as its manual advises.
    """
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    with _prepared(path) as prepared:
        quantization.quantize_static(
            str(prepared),
            str(out),
            _Reader(samples),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=per_channel,
        )


def quantise_dynamically(path: Path, out: Path, *, signed: bool) -> None:
    """Write the model at `path` with int8 or uint8 weights, and activations quantised as they come.

    Signed weights are ONNX Runtime's default. It needs no samples.
    """
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    kind = quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8
    with _prepared(path) as prepared:
        quantization.quantize_dynamic(str(prepared), str(out), weight_type=kind)


@contextmanager
def _prepared(path: Path) -> Iterator[Path]:
    """The model at `path` after the preprocessing that ONNX Runtime advises before quantisation."""
    prepare: Any = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        prepare(str(path), str(prepared), skip_symbolic_shape=True)
        yield prepared
