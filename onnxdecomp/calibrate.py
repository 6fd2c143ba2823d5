"""Factors fitted to the inputs a model really sees, site by site in topological order.

Plain factors minimise the error of the weights; these minimise the error of the outputs: each chain is fitted
by least squares to what its Conv put out in the original model, given what reaches it in the model rewritten so
far (asymmetric reconstruction: Zhang, Zou, He, Sun 2016, IEEE TPAMI 38). No labels, no gradients.

The ridge of each site is chosen on folds of the samples, and its plain factors stay where those do better
there. Sites inside other nodes' graphs and in functions, and CP chains, keep plain factors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper
from scipy.linalg import LinAlgError

from onnxdecomp.emit import Wiring, chain_nodes, constant_tensor
from onnxdecomp.errors import UsageError
from onnxdecomp.factoring import (
    Factored,
    Fit,
    Job,
    NotFiniteError,
    Spread,
    factor_one,
    find_errors,
    read_finite_weight,
)
from onnxdecomp.factors import Chain
from onnxdecomp.factors import pointwise, spatial, tucker
from onnxdecomp.factors.chain import Floats
from onnxdecomp.graph import attribute, ints
from onnxdecomp.leastsquares import LowRank, Problem, fit
from onnxdecomp.model import Model
from onnxdecomp.moments import Geometry, Moments, patches, total
from onnxdecomp.plan import Choice
from onnxdecomp.samples import Samples
from onnxdecomp.sites import Anchor
from onnxdecomp.tensors import Array
from onnxdecomp.walk import Walk
from onnxdecomp.weights import Constant, find_constant

# Shares of the mean variance of a patch that the ridge may be; the search starts in the middle.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_FOLDS = 4
# Above this many values in a patch there are only two folds, above the next only the channel covariance.
_LARGE_PATCH = 4608
WIDEST_PATCH = 8192
_BATCH = 16
_ROUNDS = 10
_ROUNDS_ON_FOLDS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Target:
    """What the chains of a job are fitted to: moments by fold and group, and how its parameters enter.

    Attributes:
        moments: [fold][group]; outputs with the bias taken off.
        weight: the original, shape (D, ∏k, C) of all groups.
        centred: whether there is a bias to take up the means.
        bias: of the first site, shape (D,).
    """

    moments: Sequence[Sequence[Moments]]
    weight: Floats
    centred: bool
    bias: Floats


def fit_all(
    jobs: Sequence[Job], model: Model, samples: Samples, scratch: Path | None, *, freeze: bool
) -> Iterator[Factored | str]:
    """Fit the factors of every job, or say why there are none; results come in order.

    Args:
        jobs: in graph order.
        model: the original.
        samples: of its inputs, two or more.
        scratch: folder for activations; None is the system's.
        freeze: treat biases that callers may override as constant.

    Raises:
        UsageError: too few samples.
        RunError, MissingExtraError: ONNX Runtime does not run the model on them.
    """
    with Calibration(model, samples, scratch, freeze=freeze) as calibration:
        yield from calibration.fit_all(jobs)


class Calibration:
    """The original model and the model rewritten so far, walked together over samples."""

    def __init__(self, model: Model, samples: Samples, scratch: Path | None, *, freeze: bool) -> None:
        folds = deal(samples)
        self._model, self._freeze = model, freeze
        self._folds = [fold for fold, part in enumerate(folds) for _ in part.batches(_BATCH)]
        walks = (
            Walk(model.proto, model.folder, (feeds for part in folds for feeds in part.batches(_BATCH)), scratch)
            for _ in range(2)
        )
        self._before, self._after = walks
        self._count = 0

    def __enter__(self) -> Calibration:
        return self

    def __exit__(self, *details: object) -> None:
        self._before.__exit__(*details)
        self._after.__exit__(*details)

    def fit_all(self, jobs: Sequence[Job]) -> Iterator[Factored | str]:
        """The factors of every job, in order, which must be that of the graph; or why there are none."""
        for job in jobs:
            outcome = self._fit(job)
            if isinstance(outcome, Factored):
                self._install(job, outcome)
            yield outcome

    def _fit(self, job: Job) -> Factored | str:
        dtype = helper.tensor_dtype_to_np_dtype(job.weight.data_type)
        try:
            weight = read_finite_weight(job.anchors[0], self._model.folder)
        except NotFiniteError as error:
            return str(error)
        found = [factor_one(weight, choice, job.groups, dtype) for choice in job.choices]
        plain = [each for each in found if isinstance(each, Factored)]
        if not plain:
            return found[0]
        heads = [self._head(anchor) for anchor in job.anchors]
        reason = next((head for head in heads if isinstance(head, str)), None)
        target = self._target(job, weight, [h for h in heads if isinstance(h, Head)]) if reason is None else reason
        if isinstance(target, str):
            best = min(plain, key=lambda each: each.errors.weight)
            return dataclasses.replace(best, fit=Fit(plain_because=target))
        fitted = [_fitted(each, target, weight, job.groups, dtype) for each in plain]
        best, shift = min(fitted, key=lambda pair: pair[0].fit.held_out)
        if shift is None:
            return best
        biases = tuple(head.bias + head.scale * shift for head in heads if isinstance(head, Head))
        return dataclasses.replace(best, biases=biases)

    def _head(self, anchor: Anchor) -> Head | str:
        """How the output of a site follows from its product W·x, or why it cannot be fitted."""
        if anchor.scope.path or anchor.scope.graph is None:
            return "it stands inside another node's graph or a function"
        outputs = (anchor.site.channels or (0, 0))[1]
        name = None if anchor.batchnorm is not None else (*anchor.node.input[2:3], "")[0] or None
        bias: Floats = np.zeros(outputs)
        if anchor.batchnorm is not None:
            bias = anchor.batchnorm.affine(self._model.folder)[1]
        elif name is not None:
            ir_version = self._model.proto.ir_version
            constant = find_constant(anchor.scope, name, ir_version=ir_version, freeze=self._freeze)
            if not isinstance(constant, Constant):
                return "its bias is no constant"
            values = constant.values(self._model.folder).astype(np.float64)
            if values.size not in (1, outputs) or values.shape[-1:] not in ((), (1,), (outputs,)):
                return "its bias has a row for each sample"
            bias = np.broadcast_to(values.reshape(-1), (outputs,)).copy()
        output = (anchor.batchnorm.node if anchor.batchnorm is not None else anchor.node).output[0]
        if anchor.site.op == "Conv":
            return Head(anchor=anchor, output=output, bias=bias, alpha=1.0, beta=1.0, centred=True)
        scales = {a.name: a.f for a in anchor.node.attribute if a.name in ("alpha", "beta")}
        alpha, beta = scales.get("alpha", 1.0), scales.get("beta", 1.0)
        if not alpha:
            return "its alpha is 0"
        centred = name is not None and beta != 0
        return Head(anchor=anchor, output=output, bias=bias, alpha=alpha, beta=beta, centred=centred)

    def _target(self, job: Job, weight: Floats, heads: Sequence[Head]) -> _Target | str:
        """The moments of a job's patches and outputs, over the sites whose input does not depend on its others."""
        own = {id(head.anchor.node) for head in heads}
        lead = heads[0]
        apart = [h for h in heads if h is lead or not own & self._after.leads_to(h.anchor.node.input[0])]
        groups = job.groups
        taps = math.prod(weight.shape[2:])
        inputs, outputs = weight.shape[1] * taps, weight.shape[0] // groups
        if inputs > WIDEST_PATCH:
            return f"its patches have {inputs} values, more than {WIDEST_PATCH}"
        folds = max(self._folds) + 1
        count = min(folds, 2) if inputs > _LARGE_PATCH else folds
        moments = [[Moments.zero(outputs, inputs) for _ in range(groups)] for _ in range(count)]
        for head in apart:
            node = head.anchor.node
            pairs = zip(self._after.values(node.input[0]), self._before.values(head.output), strict=True)
            for fold, (x, y) in zip(self._folds, pairs, strict=True):
                parts = moments[fold % count]
                for i, block in enumerate(blocks(head, weight, x, y, groups)):
                    parts[i % groups] = parts[i % groups].add(*block)
        for head in heads:
            self._before.forget(head.output)
        if not all(part.finite() for parts in moments for part in parts):
            return "its input or output has NaN or Inf on these samples"
        flat = np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
        return _Target(moments=moments, weight=flat, centred=lead.centred, bias=lead.bias)

    def _install(self, job: Job, outcome: Factored) -> None:
        """Go on with the chains in the place of a job's sites."""
        values = [link.weight.T if job.transposed else link.weight for link in outcome.chain.links]
        for i, anchor in enumerate(job.anchors):
            if anchor.scope.path or anchor.scope.graph is None:
                continue
            self._count += 1
            prefix = f"onnxdecomp/{self._count}"
            nodes = tuple(f"{prefix}/{link.role}" for link in outcome.chain.links)
            weights = dict(zip((f"{node}.weight" for node in nodes), values, strict=True))
            replaced = [anchor.node, *([anchor.batchnorm.node] if anchor.batchnorm is not None else [])]
            bias = anchor.node.input[2] if len(anchor.node.input) > 2 and anchor.node.input[2] else None
            named = tuple(weights)
            if outcome.biases is not None:
                bias = f"{prefix}.bias"
                weights[bias] = outcome.biases[i]
            elif anchor.batchnorm is not None:
                bias = f"{prefix}.bias"
                weights[bias] = anchor.batchnorm.affine(self._model.folder)[1]
            zeros = None
            if anchor.site.op == "Gemm" and anchor.scope.opset < 11:
                zeros = f"{prefix}.zeros"
                weights[zeros] = np.zeros(len(outcome.chain.links[0].weight))
            wiring = Wiring(
                nodes=nodes,
                weights=named,
                inner=tuple(f"{node}_output" for node in nodes[:-1]),
                output=replaced[-1].output[0],
                bias=bias,
                zeros=zeros,
            )
            tensors = [constant_tensor(name, array, job.weight.data_type) for name, array in weights.items()]
            self._after.exchange(replaced, chain_nodes(anchor.node, outcome.chain.links, wiring), tensors)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """How the output of a site follows from its product: alpha · W·x + beta · bias.

    Attributes:
        anchor: of the site.
        output: the tensor that its chain will write.
        bias: shape (D,).
        alpha: 1 but for a Gemm.
        beta: likewise.
        centred: whether it has a bias that can be changed.
    """

    anchor: Anchor
    output: str
    bias: Floats
    alpha: float
    beta: float
    centred: bool

    @property
    def scale(self) -> float:
        """What a shift of the product is in the bias."""
        return self.alpha / self.beta if self.centred else 0.0


def deal(samples: Samples) -> list[Samples]:
    """The samples in folds of nearly equal size, however they are ordered: sorted by their digests.

    Raises:
        UsageError: fewer than two samples.
    """
    if len(samples) < 2:
        raise UsageError("--data: fitting needs at least 2 samples, 64 or more do well")
    unit = 1
    digests = []
    for i, feeds in enumerate(samples.batches(unit)):
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(feeds):
            digest.update(np.ascontiguousarray(feeds[name]).tobytes())
        digests.append((digest.digest(), i))
    order = [i for _, i in sorted(digests)]
    return [samples.subset(order[fold::_FOLDS]) for fold in range(min(_FOLDS, len(order)))]


def blocks(
    head: Head, weight: Floats, x: Array, y: Array, groups: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Patches (n, P) and products (n, D) of one run, block by block, the groups of each block in turn."""
    node = head.anchor.node
    if head.anchor.site.op != "Conv":
        turned = attribute(node, "transA")
        x = (x.T if turned is not None and turned.i else x).reshape(-1, weight.shape[1])
        y = y.reshape(-1, weight.shape[0])
    geometry = _geometry(node, weight.shape[2:], x.shape[2:])
    products = (np.moveaxis(y, 1, -1).astype(np.float32) - np.float32(head.beta) * head.bias.astype(np.float32))
    products = products.reshape(-1, weight.shape[0]) / np.float32(head.alpha)
    width, depth = x.shape[1] // groups, weight.shape[0] // groups
    start = 0
    for block in patches(x, geometry):
        rows = products[start : start + len(block)]
        start += len(block)
        for group in range(groups):
            part = block[..., group * width : (group + 1) * width].reshape(len(block), -1)
            yield part, rows[:, group * depth : (group + 1) * depth]


def _geometry(node: NodeProto, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> Geometry:
    """The geometry of a Conv on an input of these spatial sizes, automatic padding worked out (ONNX operator Conv)."""
    axes = len(kernel)
    strides = ints(node, "strides") or (1,) * axes
    dilations = ints(node, "dilations") or (1,) * axes
    explicit = ints(node, "pads") or (0,) * (2 * axes)
    pads = tuple(zip(explicit[:axes], explicit[axes:], strict=True))
    found = attribute(node, "auto_pad")
    auto = found.s.decode() if found is not None else "NOTSET"
    if auto == "VALID":
        pads = ((0, 0),) * axes
    elif auto.startswith("SAME"):
        spans = [1 + (k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        lacking = [
            max((-(-size // step) - 1) * step + span - size, 0)
            for size, step, span in zip(sizes, strides, spans, strict=True)
        ]
        halves = [(lack // 2, lack - lack // 2) for lack in lacking]
        pads = tuple((b, a) if auto == "SAME_LOWER" else (a, b) for a, b in halves)
    return Geometry(kernel=kernel, strides=strides, dilations=dilations, pads=pads)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Which values of a patch a decomposition's input factor mixes, and the ranks of both factors.

    Attributes:
        order: the patch in the order (taps, modes), taps sharing the input factor; None where it is so.
        taps: how many.
        ranks: of the input and output factor, None for none.
    """

    order: np.ndarray | None
    taps: int
    ranks: tuple[int | None, int | None]


def arrangement(choice: Choice, kernel: tuple[int, ...], channels: int) -> Arrangement | None:
    """How `choice` meets patches of shape (*kernel, channels); None where it has no fit (CP)."""
    ranks = choice.ranks
    if choice.method in ("tucker2", "tucker1"):
        return Arrangement(None, math.prod(kernel), (ranks.input, ranks.output))
    if choice.method == "svd":
        return Arrangement(None, 1, (None, ranks.output))
    if choice.method != "spatial":
        return None
    # The first convolution mixes the first axis with the channels, and is shared by the taps of the others.
    indices = np.arange(math.prod(kernel) * channels).reshape(kernel[0], -1, channels)
    return Arrangement(indices.transpose(1, 2, 0).reshape(-1), math.prod(kernel[1:]), (ranks.output, None))


def chain_of(choice: Choice, parts: Sequence[LowRank], shape: tuple[int, ...]) -> Chain:
    """The chain of each group's low-rank weight, for an original of that shape."""
    kernel = shape[2:]
    if choice.method in ("tucker2", "tucker1"):
        nothing = np.empty((0, 0))
        triples = [
            (
                np.ascontiguousarray(np.moveaxis(part.core, 1, -1)).reshape(len(part.core), -1, *kernel),
                nothing if part.outer is None else part.outer,
                nothing if part.inner is None else part.inner,
            )
            for part in parts
        ]
        return tucker.chain(triples, choice.ranks)
    if choice.method == "svd":
        return pointwise.chain([_balanced(part) for part in parts], len(kernel))
    pairs = [
        (part.core.reshape(-1, part.core.shape[2]), part.inner.T) for part in parts if part.inner is not None
    ]
    return spatial.chain(pairs, shape[1:])


def _balanced(part: LowRank) -> tuple[Floats, Floats]:
    """Both factors of a matrix, of equal norms, so that neither leaves the range of a narrow type."""
    right = part.core.reshape(len(part.core), -1)
    left = np.eye(len(right)) if part.outer is None else part.outer
    scale = np.sqrt(np.linalg.norm(right, axis=1))
    scale[scale == 0] = 1.0
    return left * scale, right / scale[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A weight (D, P) per group with its product's shift (D,), None for no change."""

    weights: Sequence[Floats]
    shifts: Sequence[Floats | None]


def _fitted(
    plain: Factored, target: _Target, weight: Floats, groups: int, dtype: np.dtype[np.generic]
) -> tuple[Factored, Floats | None]:
    """The factors of a choice that do best on folds of the samples: fitted ones, or the plain ones."""
    placed = arrangement(plain.choice, weight.shape[2:], weight.shape[1])
    wholes = [total([fold[g] for fold in target.moments]) for g in range(groups)]
    restored = np.moveaxis(plain.chain.reconstruct(), 1, -1).reshape(weight.shape[0], -1)
    plain_weights = np.split(restored, groups)
    originals = np.split(target.weight, groups)

    def rest(fold: int) -> list[Moments]:
        return [whole - part for whole, part in zip(wholes, target.moments[fold], strict=True)]

    def plain_candidate(moments: Sequence[Moments], corrected: bool) -> _Candidate:
        shifts = [
            _shift(m, w) if corrected else None for m, w in zip(moments, plain_weights, strict=True)
        ]
        return _Candidate(plain_weights, shifts)

    def solve(moments: Sequence[Moments], ridge: float, rounds: int) -> list[LowRank]:
        assert placed is not None
        return [
            _solve(Problem.of(m, centred=target.centred), w, placed, ridge, rounds)
            for m, w in zip(moments, originals, strict=True)
        ]

    def candidate(moments: Sequence[Moments], parts: Sequence[LowRank]) -> _Candidate:
        weights = [_unarranged(part.weight(), placed) for part in parts]
        shifts = [_shift(m, w) if target.centred else None for m, w in zip(moments, weights, strict=True)]
        return _Candidate(weights, shifts)

    def held_out(make: object) -> float:
        lost = sum(
            _loss(m, w, s)
            for fold in range(len(target.moments))
            for (m, w, s) in _with(target.moments[fold], make(rest(fold)))  # type: ignore[operator]
        )
        return lost

    raw = sum(float(_raw(whole, np.split(target.bias, groups)[g])) for g, whole in enumerate(wholes)) or 1.0
    rivals: dict[object, float] = {
        "plain": held_out(lambda m: plain_candidate(m, False)),
    }
    if target.centred:
        rivals["corrected"] = held_out(lambda m: plain_candidate(m, True))
    if placed is not None:
        middle = len(RIDGES) // 2
        for i in _downhill(
            len(RIDGES),
            middle,
            lambda i: _record(
                rivals, RIDGES[i], lambda: held_out(lambda m: candidate(m, solve(m, RIDGES[i], _ROUNDS_ON_FOLDS)))
            ),
        ):
            del i
    best = min(rivals, key=lambda key: rivals[key])
    final: Factored
    if isinstance(best, float):
        parts = solve(wholes, best, _ROUNDS)
        exact = chain_of(plain.choice, parts, weight.shape)
        chain = exact.cast(dtype)
        stored = np.split(np.moveaxis(chain.reconstruct(), 1, -1).reshape(weight.shape[0], -1), groups)
        shifts = [_shift(m, w) if target.centred else None for m, w in zip(wholes, stored, strict=True)]
        chosen = _Candidate(stored, shifts)
        errors = find_errors(weight, exact, chain, dtype)
        final = dataclasses.replace(plain, chain=chain, errors=errors)
    else:
        chosen = plain_candidate(wholes, best == "corrected")
        final = plain
    fitted_loss = sum(_loss(m, w, s) for m, w, s in _with(wholes, chosen))
    shift = None if chosen.shifts[0] is None else np.concatenate([s for s in chosen.shifts if s is not None])
    spreads = (
        _spread(wholes, None, target, groups),
        _spread(wholes, plain_candidate(wholes, False), target, groups),
        _spread(wholes, chosen, target, groups),
    )
    return dataclasses.replace(
        final,
        fit=Fit(
            plain_because=None if isinstance(best, float) else "its plain factors do better on samples not fitted",
            ridge=best if isinstance(best, float) else None,
            fitted=math.sqrt(fitted_loss / raw),
            held_out=math.sqrt(rivals[best] / raw),
            plain=math.sqrt(rivals["plain"] / raw),
            original_spread=spreads[0],
            plain_spread=spreads[1],
            spread=spreads[2],
        ),
    ), shift


def _record(rivals: dict[object, float], key: float, run: object) -> float:
    try:
        rivals[key] = run()  # type: ignore[operator]
    except LinAlgError:
        # Too small a ridge for these samples; a larger one is tried.
        return math.inf
    return rivals[key]


def _downhill(count: int, start: int, value: object) -> Iterator[int]:
    """Walk from `start` to where `value` grows again, on whichever side it falls."""
    seen = {start: value(start)}  # type: ignore[operator]
    yield start
    for step in (1, -1):
        here = start
        while 0 <= here + step < count:
            seen[here + step] = value(here + step)  # type: ignore[operator]
            yield here + step
            if seen[here + step] >= seen[here]:
                break
            here += step
        if here != start:
            return


def _with(moments: Sequence[Moments], made: _Candidate) -> Iterator[tuple[Moments, Floats, Floats | None]]:
    yield from zip(moments, made.weights, made.shifts, strict=True)


def _solve(problem: Problem, weight: Floats, placed: Arrangement, ridge: float, rounds: int) -> LowRank:
    problem = problem.ridged(weight, ridge)
    if placed.order is not None:
        order = placed.order
        problem = Problem(problem.s[np.ix_(order, order)], problem.t[:, order], problem.yy)
    return fit(problem, placed.taps, placed.ranks, rounds)


def _unarranged(weight: Floats, placed: Arrangement | None) -> Floats:
    if placed is None or placed.order is None:
        return weight
    result = np.empty_like(weight)
    result[:, placed.order] = weight
    return result


def _shift(moments: Moments, weight: Floats) -> Floats:
    """What a bias must add so that the mean output is right."""
    return np.asarray((moments.y - weight @ moments.x) / moments.count)


def _loss(moments: Moments, weight: Floats, shift: Floats | None) -> float:
    """Σ ‖y − Ŵx − shift‖²."""
    found = float(moments.yy.sum()) + float(((weight @ moments.xx - 2 * moments.yx) * weight).sum())
    if shift is not None:
        found += float(shift @ (moments.count * shift - 2 * (moments.y - weight @ moments.x)))
    return max(found, 0.0)


def _raw(moments: Moments, bias: Floats) -> float:
    """Σ ‖y + bias‖², the outputs as they are."""
    return float(moments.yy.sum() + bias @ (2 * moments.y + moments.count * bias))


def _spread(wholes: Sequence[Moments], made: _Candidate | None, target: _Target, groups: int) -> Spread:
    """Mean and standard deviation of all outputs: of the original, or of a candidate."""
    first = second = values = 0.0
    for g, (m, bias) in enumerate(zip(wholes, np.split(target.bias, groups), strict=True)):
        if made is None:
            sums, squares = m.y, m.yy
        else:
            weight, shift = made.weights[g], made.shifts[g]
            sums = weight @ m.x
            squares = ((weight @ m.xx) * weight).sum(axis=1)
            if shift is not None:
                squares = squares + shift * (2 * sums + m.count * shift)
                sums = sums + m.count * shift
        first += float((sums + m.count * bias).sum())
        second += float((squares + bias * (2 * sums + m.count * bias)).sum())
        values += m.count * len(bias)
    mean = first / values
    return Spread(mean, math.sqrt(max(second / values - mean**2, 0.0)))
