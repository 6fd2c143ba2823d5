"""Copies in half precision and with names: right, and the original stays as it is."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
from conftest import save_external, small_model

from onnxdecomp.runtime import Engine, open_session
from onnxdecomp.timing import halved, open_subjects
from onnxdecomp.timing.copies import named

X = nets.signal(1, 16, 8, 8)


def nameless() -> onnx.ModelProto:
    model = small_model()
    for node in model.graph.node:
        node.name = ""
    return model


def test_half_precision_of_external_data_leaves_the_original_as_it_is(tmp_path: Path) -> None:
    (subject,) = open_subjects([save_external(small_model(), tmp_path / "in.onnx")])
    before = subject.proto.SerializeToString()
    half = onnx.load(halved(subject, tmp_path / "half.onnx"))
    assert subject.proto.SerializeToString() == before
    assert {each.data_type for each in half.graph.initializer} == {onnx.TensorProto.FLOAT16}
    expected = nets.run(small_model(), x=X)["y"]
    (found,) = open_session(half.SerializeToString(), Engine()).run(None, {"x": X})
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def test_names_are_given_in_a_copy_that_computes_the_same(tmp_path: Path) -> None:
    (subject,) = open_subjects([save_external(nameless(), tmp_path / "in.onnx")])
    before = subject.proto.SerializeToString()
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path, graph = named(subject, folder / "named.onnx")
    assert subject.proto.SerializeToString() == before
    assert path == folder / "named.onnx"
    assert [node.name for node in graph.node] == ["h", "y"]
    np.testing.assert_array_equal(nets.run(onnx.load(path), x=X)["y"], nets.run(small_model(), x=X)["y"])


def test_a_model_whose_nodes_have_names_is_its_own_copy(tmp_path: Path) -> None:
    (subject,) = open_subjects([save_external(small_model(), tmp_path / "in.onnx")])
    assert named(subject, tmp_path / "named.onnx") == (subject.path, subject.proto.graph)
    assert not (tmp_path / "named.onnx").exists()
