"""A walk gives what ONNX Runtime gives for the whole model, runs each node once and leaves no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import save_external
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxdecomp.errors import RunError
from onnxdecomp.ir import all_tensors, is_external
from onnxdecomp.runtime import Feeds, Walk
from onnxdecomp.runtime.tape import Tape

# Residuals, a shared initialiser, an input that is read late, constants by way of nodes, two graphs inside
# an If that read tensors (one through two levels) from around it, several outputs of one node.
BRANCHES = """
m (float[N,4,6,6] x, float[N,4,6,6] other, bool flag) => (float[N,4,6,6] y, float[N,2,6,6] z) {
  a = Conv <pads=[1,1,1,1]> (x, w)
  r = Relu (a)
  bias = Constant <value = float[1] {0.5}> ()
  doubled = Add (bias, bias)
  s = Add (r, x)
  t = Conv <pads=[1,1,1,1]> (s, w)
  u = Add (t, s)
  v = Mul (u, doubled)
  k = If (flag) <
    then_branch = yes () => (float[N,4,6,6] p) {
      inner = Add (r, v)
      p = If (flag) <
        then_branch = deep () => (float[N,4,6,6] q) { q = Sub (inner, s) },
        else_branch = shallow () => (float[N,4,6,6] o) { o = Identity (inner) }
      >
    },
    else_branch = no () => (float[N,4,6,6] n) { n = Mul (a, c) }
  >
  mixed = Add (k, other)
  z, rest = Split <axis=1> (mixed, parts)
  back = Concat <axis=1> (rest, z)
  y = Add (back, s)
}
"""


def branches() -> ModelProto:
    return nets.model(
        BRANCHES,
        w=nets.weight(4, 4, 3, 3),
        c=nets.signal(1, 4, 1, 1),
        parts=np.array([2, 2]),
    )


def feeds(*sizes: int) -> list[dict[str, np.ndarray]]:
    return [
        {
            "x": nets.signal(n, 4, 6, 6, seed=i),
            "other": nets.signal(n, 4, 6, 6, seed=50 + i),
            "flag": np.array(i % 2 == 0),
        }
        for i, n in enumerate(sizes)
    ]


def whole(proto: ModelProto, name: str, runs: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """The tensor, as an output more of the whole model."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    if name not in {output.name for output in copy.graph.output}:
        inferred = onnx.shape_inference.infer_shapes(copy).graph.value_info
        copy.graph.output.append(next(value for value in inferred if value.name == name))
    return [nets.run(copy, **each)[name] for each in runs]


def walk(proto: ModelProto, runs: list[Any], beside: Path, folder: Path = Path()) -> Walk:
    return Walk(proto, folder, iter(runs), beside)


def made(proto: ModelProto) -> list[str]:
    return [name for node in proto.graph.node for name in node.output]


def assert_same(expected: list[np.ndarray], actual: Iterator[np.ndarray]) -> None:
    for one, other in zip(expected, actual, strict=True):
        assert nets.distance(one, other) < 1e-6


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> list[list[NodeProto]]:
    """The nodes of every segment run."""
    seen: list[list[NodeProto]] = []
    run = Walk._run

    def noting(self: Walk, nodes: list[NodeProto], *rest: Any) -> None:
        seen.append(list(nodes))
        run(self, nodes, *rest)

    monkeypatch.setattr(Walk, "_run", noting)
    return seen


def test_every_tensor_is_that_of_the_whole_model(tmp_path: Path, segments: list[list[NodeProto]]) -> None:
    proto, runs = branches(), feeds(3, 3, 2)
    before = proto.SerializeToString()
    with walk(proto, runs, tmp_path) as walked:
        assert walked.runs == 3
        for name in made(proto):
            assert_same(whole(proto, name, runs), walked.values(name))
    assert proto.SerializeToString() == before
    ran = Counter(node.output[0] for nodes in segments for node in nodes)
    constant = {"bias", "doubled"}  # computed where they are read, and never kept
    assert {name: count for name, count in ran.items() if name not in constant} == dict.fromkeys(
        set(made(proto)) - constant - {"rest"}, 1
    )


@pytest.mark.parametrize("asked", [["y"], ["u", "z"], ["s", "mixed", "y"], ["r", "v", "k", "y"]])
def test_tensors_may_be_skipped(asked: list[str], tmp_path: Path, segments: list[list[NodeProto]]) -> None:
    proto, runs = branches(), feeds(2, 2)
    with walk(proto, runs, tmp_path) as walked:
        for name in asked:
            assert_same(whole(proto, name, runs), walked.values(name))
    ran = Counter(node.output[0] for nodes in segments for node in nodes)
    assert max(count for name, count in ran.items() if name not in ("bias", "doubled")) == 1
    assert len(segments) == len(asked)


def test_a_tensor_may_be_asked_for_twice_until_it_is_forgotten(
    tmp_path: Path, segments: list[list[NodeProto]]
) -> None:
    proto, runs = branches(), feeds(2, 2)
    with walk(proto, runs, tmp_path) as walked:
        first, again = list(walked.values("y")), list(walked.values("y"))
        assert len(segments) == 1
        assert all(map(np.array_equal, first, again))
        walked.forget("y")
        assert not list(tmp_path.glob("*/*.npy")), "all nodes ran: nothing is left to keep"


def test_only_what_is_still_read_is_kept(tmp_path: Path) -> None:
    proto, runs = branches(), feeds(2, 2)

    def stored(walked: Walk) -> set[str]:
        return {name for name in [*made(proto), "x", "other", "flag"] if name in walked._tape}

    with walk(proto, runs, tmp_path) as walked:
        list(walked.values("u"))
        assert stored(walked) == {"a", "r", "s", "u", "other", "flag"}
        assert len(list(tmp_path.glob("*/*.npy"))) == 2 * 6
        walked.forget("s")  # somebody still reads it
        assert_same(whole(proto, "y", runs), walked.values("y"))
        assert stored(walked) == {"y"} | ({"z"} & stored(walked))


def test_an_input_is_a_tensor_too(tmp_path: Path, segments: list[list[NodeProto]]) -> None:
    runs = feeds(2, 1)
    with walk(branches(), runs, tmp_path) as walked:
        assert_same([each["other"] for each in runs], walked.values("other"))
    assert not segments


def test_a_constant_is_a_tensor_too(tmp_path: Path) -> None:
    proto, runs = branches(), feeds(2, 1)
    with walk(proto, runs, tmp_path) as walked:
        assert_same([nets.weight(4, 4, 3, 3)] * 2, walked.values("w"))
        assert_same([np.ones(1, np.float32)] * 2, walked.values("doubled"))
        assert_same(whole(proto, "y", runs), walked.values("y"))


def test_leads_to_follows_the_graphs_inside(tmp_path: Path) -> None:
    proto = branches()
    with walk(proto, feeds(1), tmp_path) as walked:
        names = {id(node): node.output[0] for node in walked._nodes}
        assert {names[node] for node in walked.leads_to("k")} == {
            *("a", "r", "s", "t", "u", "v", "k", "bias", "doubled")
        }
        assert {names[node] for node in walked.leads_to("s")} == {"a", "r", "s"}
        assert walked.leads_to("x") == walked.leads_to("w") == set()


# Exchanged nodes
# ---------------


def test_exchanged_nodes_change_what_follows_alone(tmp_path: Path, segments: list[list[NodeProto]]) -> None:
    proto, runs = branches(), feeds(2, 3)
    other, bias = nets.weight(4, 4, 3, 3, seed=9), nets.signal(4, seed=3)
    edited = ModelProto()
    edited.CopyFrom(proto)
    edited.graph.initializer.extend(
        [numpy_helper.from_array(other, "w2"), numpy_helper.from_array(bias, "b2")]
    )
    edited.graph.node[5].CopyFrom(helper.make_node("Conv", ["s", "w2", "b2"], ["t"], pads=[1, 1, 1, 1]))
    with walk(proto, runs, tmp_path) as walked:
        assert_same(whole(proto, "s", runs), walked.values("s"))
        old = next(node for node in walked._nodes if "t" in node.output)
        half = helper.make_node("Conv", ["s", "w2"], ["half"], pads=[1, 1, 1, 1])
        column = numpy_helper.from_array(bias.reshape(4, 1, 1), "b3")
        new = [half, helper.make_node("Add", ["half", "b3"], ["t"])]
        walked.exchange([old], new, [numpy_helper.from_array(other, "w2"), column])
        for name in ("t", "u", "k", "z", "y"):
            assert_same(whole(edited, name, runs), walked.values(name))
    assert nets.distance(whole(proto, "y", runs)[0], whole(edited, "y", runs)[0]) > 0.01
    ran = Counter(name for nodes in segments for node in nodes for name in node.output)
    assert ran["a"] == ran["s"] == ran["half"] == ran["t"] == 1
    assert not any(node is old for nodes in segments for node in nodes)


def test_two_nodes_are_exchanged_for_one(tmp_path: Path) -> None:
    proto = nets.model("m (float[N,3] x) => (float[N,3] y) { a = Neg (x) b = Abs (a) y = Add (b, x) }")
    runs = [{"x": nets.signal(4, 3)}]
    with walk(proto, runs, tmp_path) as walked:
        walked.exchange(walked._nodes[:2], [helper.make_node("Exp", ["x"], ["b"])], [])
        assert_same([np.exp(runs[0]["x"]) + runs[0]["x"]], walked.values("y"))
        with pytest.raises(RunError, match="nothing computes the tensor 'a'"):
            list(walked.values("a"))


# Models of every kind
# --------------------


def test_runs_may_differ_in_shape(tmp_path: Path) -> None:
    proto = nets.model(
        "m (float[N,2,H,H] x) => (float[N,2,H,H] y) { h = Conv (x, w) r = Relu (h) y = Exp (r) }",
        w=nets.weight(2, 2, 3, 3),
    )
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [None] * 4))
    runs = [{"x": nets.signal(n, 2, size, size)} for n, size in ((3, 6), (1, 9), (2, 5))]
    expected = [nets.run(proto, **each)["y"] for each in runs]
    with walk(proto, runs, tmp_path) as walked:
        assert [value.shape for value in walked.values("h")] == [(3, 2, 4, 4), (1, 2, 7, 7), (2, 2, 3, 3)]
        assert_same(expected, walked.values("y"))


def test_types_and_scalars(tmp_path: Path) -> None:
    text = """m (double[N,3] x, int64 k) => (float16[N,3] y) {
      d = Cast <to=11> (k)  e = Mul (x, d)  f = Cast <to=10> (e)  b = Greater (e, d)  y = Where (b, f, one)
    }"""
    proto = nets.model(text, one=np.ones(1, np.float16))
    runs = [{"x": nets.signal(2, 3, dtype=np.float64), "k": np.array(k)} for k in (2, 3)]
    with walk(proto, runs, tmp_path) as walked:
        for name in ("d", "e", "f", "b", "y"):
            assert_same_bytes(whole(proto, name, runs), list(walked.values(name)))


def assert_same_bytes(expected: list[np.ndarray], actual: list[np.ndarray]) -> None:
    assert [(a.dtype, a.shape, a.tobytes()) for a in expected] == [
        (a.dtype, a.shape, a.tobytes()) for a in actual
    ]


def test_external_data(tmp_path: Path) -> None:
    text = """m (float[N,4,6,6] x, bool flag) => (float[N,4,6,6] y) {
      c = Constant <value = float[1,4,1,1] {1.0, 2.0, 3.0, 4.0}> ()
      a = Conv <pads=[1,1,1,1]> (x, w)
      h = Mul (a, c)
      y = If (flag) <
        then_branch = yes () => (float[N,4,6,6] p)
          <float[4] v = {1.0, 2.0, 3.0, 4.0}> { q = Reshape (v, s) p = Add (h, q) },
        else_branch = no () => (float[N,4,6,6] n) { n = Identity (h) }
      >
    }"""
    proto = nets.model(text, w=nets.weight(4, 4, 3, 3), s=np.array([1, 4, 1, 1]))
    runs = [{"x": nets.signal(2, 4, 6, 6), "flag": np.array(flag)} for flag in (True, False)]
    expected = {name: whole(proto, name, runs) for name in ("a", "h", "y")}
    for tensor in all_tensors(proto):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    (tmp_path / "model").mkdir()
    path = save_external(proto, tmp_path / "model" / "m.onnx")
    outside = onnx.load(path, load_external_data=False)
    assert len(list(all_tensors(outside))) == 4 and all(map(is_external, all_tensors(outside)))
    with walk(outside, runs, tmp_path, path.parent) as walked:
        for name, values in expected.items():
            assert_same(values, walked.values(name))


def test_functions(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    m (float[N,3] x) => (float[N,3] y) { a = own.twice (x) y = own.twice (a) }
    <domain: "own", opset_import: ["" : 17]> twice (v) => (w) { w = Add (v, v) }"""
    runs = [{"x": nets.signal(4, 3)}]
    with walk(nets.model(text), runs, tmp_path) as walked:
        assert_same([2 * runs[0]["x"]], walked.values("a"))
        assert_same([4 * runs[0]["x"]], walked.values("y"))


# Files, and what goes wrong
# --------------------------


def test_the_scratch_folder_goes(tmp_path: Path) -> None:
    with walk(branches(), feeds(2), tmp_path) as walked:
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith(".onnxdecomp-") and list(folder.iterdir())
        list(walked.values("u"))
    assert not list(tmp_path.iterdir())


def test_the_scratch_folder_goes_when_something_fails(tmp_path: Path) -> None:
    proto = nets.model(
        "m (float[N,3] x) => (float[N,3] y) { a = Neg (x) y = Reshape (a, shape) }", shape=np.array([7])
    )
    with (
        pytest.raises(RunError, match=r"^ONNX Runtime does not run the model on the samples: "),
        walk(proto, [{"x": nets.signal(4, 3)}], tmp_path) as walked,
    ):
        list(walked.values("y"))
    assert not list(tmp_path.iterdir())


def test_the_scratch_folder_goes_when_a_feed_cannot_be_read(tmp_path: Path) -> None:
    def broken() -> Iterator[Feeds]:
        yield feeds(2)[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        Walk(branches(), Path(), broken(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tape_knows_types_and_shapes(tmp_path: Path) -> None:
    with Tape(tmp_path) as tape:
        for size in (2, 3):
            tape.append("odd / name", np.ones((size, 4), np.float16))
        tape.append("scalar", np.array(3))
        assert "odd / name" in tape and "other" not in tape
        info = tape.value_info("odd / name").type.tensor_type
        assert info.elem_type == onnx.TensorProto.FLOAT16
        assert [d.dim_value if d.HasField("dim_value") else None for d in info.shape.dim] == [None, 4]
        assert tape.value_info("scalar").type.tensor_type.HasField("shape")
        assert tape.read("odd / name", 1).shape == (3, 4)
        tape.drop("odd / name")
        assert "odd / name" not in tape
        assert len(list(tmp_path.glob("*/*.npy"))) == 1
    assert not list(tmp_path.iterdir())


# Other values of a tensor, sent through the rest
# -----------------------------------------------


def fed(proto: ModelProto, name: str) -> ModelProto:
    """The model with the tensor `name` as an input more, nobody computing it."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    known = [value for value in (*inferred.value_info, *inferred.output) if value.name == name]
    copy = ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        for i, output in enumerate(node.output):
            if output == name:
                node.output[i] = "nobody reads it"
    copy.graph.input.extend(known)
    return copy


def followers(proto: ModelProto, name: str) -> list[str]:
    """The outputs that change with the tensor, by trying."""
    (run,) = feeds(2)
    (value,) = whole(proto, name, [run])
    found = []
    for output in proto.graph.output:
        before, after = (
            nets.run(fed(proto, name), **run, **{name: each})[output.name] for each in (value, value + 1)
        )
        found += [output.name] if not np.array_equal(before, after) else []
    return found


@pytest.mark.parametrize("name", ["a", "r", "s", "t", "u", "v", "k", "mixed", "z", "rest", "back"])
def test_other_values_are_replayed_as_the_rest_of_the_model_has_it(name: str, tmp_path: Path) -> None:
    proto, runs = branches(), feeds(3, 2)
    expected = {output: whole(proto, output, runs) for output in ("y", "z")}
    with walk(proto, runs, tmp_path) as walked:
        walked.hold(name)
        own = list(walked.values(name))
        behind = walked.behind(name, [value.name for value in proto.graph.output])
        assert set(behind) - {name} == set(followers(proto, name)) - {name}
        replay = walked.replay(name, behind)
        for number, each in enumerate(runs):
            assert nets.distance(own[number], walked.value(name, number)) == 0
            other = own[number] + nets.signal(*own[number].shape, seed=30 + number)
            for value in (own[number], other, own[number]):
                found = dict(zip(behind, replay(number, value), strict=True))
                if name in found:
                    assert np.array_equal(found.pop(name), value)
                reference = nets.run(fed(proto, name), **each, **{name: value}) if found else {}
                for output, array in found.items():
                    assert nets.distance(reference[output], array) < 1e-6, (output, number)
                    if value is own[number]:
                        assert nets.distance(expected[output][number], array) < 1e-6
        # The walk has stayed where it was, and goes on as if nothing had been.
        walked.forget(name)
        for output in ("y",) if name in ("z", "rest", "back") else ("z", "y"):
            assert_same(expected[output], walked.values(output))
    assert not list(tmp_path.iterdir())


def test_outputs_that_a_tensor_does_not_lead_to_are_not_behind_it(tmp_path: Path) -> None:
    proto = nets.model(
        "m (float[N,3] x) => (float[N,3] early, float[N,3] late)"
        "{ early = Neg (x) h = Exp (x) late = Abs (h) }"
    )
    with walk(proto, [{"x": nets.signal(4, 3)}], tmp_path) as walked:
        outputs = ["early", "late"]
        assert walked.behind("x", outputs) == outputs
        assert walked.behind("h", outputs) == walked.behind("late", outputs) == ["late"]
        assert walked.behind("early", outputs) == ["early"]


def test_a_tensor_that_is_held_stays_though_nobody_reads_it(tmp_path: Path) -> None:
    proto, runs = branches(), feeds(2, 1)
    expected = whole(proto, "t", runs)
    with walk(proto, runs, tmp_path) as walked:
        walked.hold("t")
        list(walked.values("t"))
        list(walked.values("y"))
        for number, value in enumerate(expected):
            assert nets.distance(value, walked.value("t", number)) < 1e-6
        walked.forget("t")
        assert "t" not in walked._tape
