"""Every operator of the table against ONNX's own test vectors, older definitions against ONNX Runtime."""

from __future__ import annotations

import functools
import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

pytest.importorskip("torch")

from onnx.backend.test.loader import load_model_tests

from onnxdecomp.ir import Model
from onnxdecomp.tuning.operators.table import TABLE
from onnxdecomp.tuning.program import Program

# The cases of operators in the table that are not computed, by what their names match, and why.
EXCLUDED = {
    r"(add|sub|div|mod|max|min|greater|greater_equal|less|less_equal)_uint(16|32|64)$": "not in PyTorch",
    r"cast(like)?_\w+_to_(FLOAT8|FLOAT4|U?INT4|U?INT2)|cast(like)?_U?INT[42]_to": "not in PyTorch",
    r"equal_string|identity_(sequence|opt)": "no tensors of numbers",
    r"maxpool_with_argmax|batchnorm_.*_training_mode": "outputs that only training reads",
    r"training_dropout": "it would train",
    r"reduce_(max|min)_empty_set": "PyTorch has no extreme of nothing",
    r"resize_tf_crop_and_resize|resize_.*_antialias": "Resize that crops or smooths",
    r"resize_.*_nearest_not_(larger|smaller)": "Resize that keeps the aspect",
}


@functools.cache
def cases() -> dict[str, list[Any]]:
    """ONNX's cases of a single node, by its operator."""
    found = defaultdict(list)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # some divide by zero, to see what comes of it
        loaded = load_model_tests(kind="node")
    for case in loaded:
        nodes = case.model.graph.node if case.model is not None else ()
        if len(nodes) == 1 and nodes[0].domain == "":
            found[nodes[0].op_type].append(case)
    return found


def array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def problem(case: Any) -> str | None:
    """What is wrong of what is computed, or why nothing is."""
    graph = case.model.graph
    names, inputs = [value.name for value in graph.output], [value.name for value in graph.input]
    program = Program.of(Model(proto=case.model, folder=Path()), names, {})
    for given, expected in case.data_sets:
        feeds = {name: array(value) for name, value in zip(inputs, given, strict=True)}
        if any(isinstance(value, list) for value in feeds.values()):
            return "no tensors"
        program = program.tried(feeds)
        if program.missing:
            return str(dict(program.missing))
        found = program.run(feeds)
        for name, wanted in zip(names, map(array, expected), strict=True):
            value = found[name].numpy()
            # Half precision is computed in single.
            half = wanted.dtype.name in ("float16", "bfloat16")
            if value.shape != wanted.shape or (value.dtype != wanted.dtype and not half):
                return f"{value.dtype}{value.shape} for {wanted.dtype}{wanted.shape}"
            pair = value.astype(np.float64), wanted.astype(np.float64)
            tolerance = 1e-2 if half else case.rtol
            if not np.allclose(*pair, rtol=tolerance, atol=max(case.atol, 1e-6), equal_nan=True):
                return f"off by {np.abs(pair[0] - pair[1]).max()}"
    return None


@pytest.mark.parametrize("op", TABLE)
def test_an_operator_computes_what_onnx_says(op: str) -> None:
    left_out = {case.name for case in cases()[op] if any(re.search(each, case.name) for each in EXCLUDED)}
    problems = {case.name: found for case in cases()[op] if (found := problem(case)) is not None}
    assert cases()[op]
    assert {name: said for name, said in problems.items() if name not in left_out} == {}
    assert left_out == problems.keys(), "what is computed by now is not to be left out"


# Definitions of before, which only old files have: opset, text, and the initialisers that it reads.
OLDER: list[tuple[int, str, dict[str, np.ndarray]]] = [
    (11, "y = Softmax <axis=1> (x)", {}),
    (11, "y = LogSoftmax <axis=-1> (x)", {}),
    (10, "y = Clip <min=-0.5, max=0.25> (x)", {}),
    (8, 'y = Upsample <mode="nearest", scales=[1.0,1.0,2.0,3.0]> (x)', {}),
    (9, 'y = Upsample <mode="linear"> (x, k)', {"k": np.array([1, 1, 2, 2], np.float32)}),
    (10, 'y = Resize <mode="linear"> (x, k)', {"k": np.array([1, 1, 1.5, 0.5], np.float32)}),
    (10, 'y = Pad <mode="reflect", pads=[0,0,1,2,0,0,3,0]> (x)', {}),
    (10, "y = Pad <pads=[0,1,1,2,0,0,0,-1], value=0.5> (x)", {}),
    (9, "y = Slice <starts=[1,-3], ends=[4,100], axes=[1,3]> (x)", {}),
    (9, "y, places = TopK <k=2, axis=1> (x)", {}),
    (11, "h = Unsqueeze <axes=[0,5]> (x) y = Squeeze <axes=[0]> (h)", {}),
    (11, "y, rest = Split <axis=1, split=[3,1]> (x)", {}),
    (11, "y = ReduceMean <axes=[2,3], keepdims=0> (x)", {}),
    (9, "y, mask = Dropout <ratio=0.5> (x)", {}),
    (7, "y = BatchNormalization (x, k, k, k, k)", {"k": np.array([0.5, 2, 1, 3], np.float32)}),
    (11, "y = Gemm <transA=1, alpha=0.5, beta=2.0> (k, k, b)", {"k": nets.signal(4, 4), "b": nets.signal(4)}),
]


@pytest.mark.parametrize(("opset", "nodes", "arrays"), OLDER, ids=lambda value: str(value)[:30])
def test_older_definitions_are_those_of_their_time(
    opset: int, nodes: str, arrays: dict[str, np.ndarray]
) -> None:
    dims = ",".join("?" * {"ReduceMean": 2, "Gemm": 2, "Unsqueeze": 5}.get(nodes.split()[2], 4))
    text = f"m (float[2,4,6,6] x) => (float[{dims}] y) {{ {nodes} }}"
    model = nets.model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}', **arrays)
    x = nets.signal(2, 4, 6, 6)
    program = Program.of(Model(proto=model, folder=Path()), ["y"], {})
    assert nets.distance(nets.run(model, x=x)["y"], program.run({"x": x})["y"].numpy()) < 1e-6


def test_a_definition_of_the_future_is_not_computed() -> None:
    """What it means is not known; a version of today is, and so is what did not change since."""
    from onnxdecomp.tuning.operators import table

    found = {op: max(entry.until for entry in entries) for op, entries in table.TABLE.items()}
    assert set(found.values()) == {table.NEWEST}


def test_an_attribute_that_a_function_does_not_know_is_not_ignored() -> None:
    model = nets.model("m (float[N,4] x) => (float[N,4] y) { y = Relu <odd=1> (x) }")
    program = Program.of(Model(proto=model, folder=Path()), ["y"], {})
    assert "odd" in program.missing["y"] and not program.targets
