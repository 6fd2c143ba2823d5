"""Tuning where outputs cannot be compared: by what stands in their place, and never beyond that."""

from __future__ import annotations

import nets
import numpy as np
import pytest
from nets import ANYTHING
from onnx import ModelProto

import onnxdecomp
from onnxdecomp import Tuning, open_samples, tune
from onnxdecomp.ir import as_model
from onnxdecomp.tuning.landmarks import find_landmarks

pytest.importorskip("torch")

HEAD = """[conv] c = Conv <pads=[1,1,1,1]> (x, w)
  a = Relu (c)
  [score] s = Conv <pads=[1,1,1,1]> (a, v)"""


def picked() -> ModelProto:
    body = """mean = ReduceMean <axes=[1], keepdims=0> (s)
      sure = Greater (mean, zero)
      places = NonZero (sure)
      turned = Transpose (places)
      moved = Transpose <perm=[0,2,3,1]> (s)
      rows = GatherND (moved, turned)
      hidden = MatMul (rows, m)
      y = Relu (hidden)"""
    text = f"m (float[N,8,6,6] x) => (float[k,8] y) {{ {HEAD} {body} }}"
    return nets.model(
        text,
        w=nets.weight(8, 8, 3, 3),
        v=nets.weight(8, 8, 3, 3, seed=1),
        m=nets.weight(8, 8),
        zero=np.float32(0),
    )


def plugin() -> ModelProto:
    body = "y = Decode_TRT (s)"
    text = f"m (float[N,8,6,6] x) => (float[k,8] y) {{ {HEAD} {body} }}"
    return nets.model(text, w=nets.weight(8, 8, 3, 3), v=nets.weight(8, 8, 3, 3, seed=1))


@pytest.mark.parametrize(
    ("model", "places"), [(picked(), {"mean", "moved"}), (plugin(), {"s"})], ids=["picked", "plugin"]
)
def test_it_brings_nearer_what_stands_before(model: ModelProto, places: set[str]) -> None:
    samples = open_samples({"x": nets.structured(24, 8, 6, 6, seed=4)}, model)
    result = onnxdecomp.rewrite(model, 0.5, policy=ANYTHING, only="conv|score", check=False)
    tuned = tune(model, result, samples, tuning=Tuning(steps=20))
    assert {gap.name for gap in tuned.outputs} == places
    assert tuned.improved and all(gap.after < gap.before for gap in tuned.outputs)  # type: ignore[operator]


def test_landmarks_end_where_sizes_begin_to_differ() -> None:
    model = picked()
    result = onnxdecomp.rewrite(model, 0.5, policy=ANYTHING, only="conv|score", check=False)
    found = find_landmarks(as_model(model), result.as_model(), {"conv/tucker_in.weight"})
    assert "y" not in found.names and found.inner == ("a",)
