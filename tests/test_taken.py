"""What functions take: the same thing in every form that it may have, with the same outcome."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import save_external, small_model, untouched
from onnx import TensorProto

import onnxdecomp
from onnxdecomp import Choice, Goal, Plan, Preprocessing, Ranks, SampleSets, UsageError, ir, settings
from onnxdecomp.timing import benching

POLICY = onnxdecomp.Policy(min_channels=8, align=4)


@pytest.fixture(autouse=True)
def _here(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)


@pytest.fixture
def result() -> onnxdecomp.Result:
    found = onnxdecomp.rewrite("in.onnx", 0.25)
    found.save("out.onnx")
    return found


X = nets.structured(24, 16, 8, 8, seed=2)
PROBE = nets.signal(1, 16, 8, 8)

# Models
# ------


def forms(result: onnxdecomp.Result) -> list[Any]:
    """The rewritten model in every form."""
    return ["out.onnx", Path("out.onnx"), result, result.model, result.rewritten, onnx.load("out.onnx")]


def test_a_result_is_taken_wherever_a_model_is(
    result: onnxdecomp.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = {"x": PROBE}
    uses: list[Callable[[Any], Any]] = [
        onnxdecomp.find_sites,
        lambda model: onnxdecomp.inspect(model).to_dict(),
        lambda model: onnxdecomp.check("in.onnx", model),
        lambda model: onnxdecomp.compare("in.onnx", model, feed),
        lambda model: onnxdecomp.compare(model, "in.onnx", feed),
        lambda model: onnxdecomp.measure_quality("in.onnx", model, feed),
        lambda model: onnxdecomp.rewrite(model, 4, policy=nets.ANYTHING).plan,
        lambda model: onnxdecomp.search(model, Goal("params", 0.9), cost="macs", policy=nets.ANYTHING).plan,
        lambda model: next(iter(onnxdecomp.open_samples(feed, model)))["x"].tolist(),
    ]
    for use in uses:
        first, *others = [use(form) for form in forms(result)]
        assert all(other == first for other in others)
    with pytest.raises(UsageError, match="`b` takes a path, a ModelProto or a result, not b'"):
        onnxdecomp.compare("in.onnx", Path("out.onnx").read_bytes())  # type: ignore[arg-type]
    with pytest.raises(onnxdecomp.ModelError, match="`b`: cannot read none"):
        onnxdecomp.compare("in.onnx", "none.onnx")


def test_a_search_is_a_model_where_it_met_its_goal() -> None:
    found = onnxdecomp.search("in.onnx", Goal("macs", 0.6), cost="macs", policy=POLICY)
    assert found.met and onnxdecomp.check("in.onnx", found).status == "passed"
    missed = onnxdecomp.search("in.onnx", Goal("macs", 0.001), cost="macs", policy=POLICY)
    with pytest.raises(onnxdecomp.GoalError):
        onnxdecomp.check("in.onnx", missed)


def test_a_bench_times_models_in_files_that_are_gone_afterwards(
    result: onnxdecomp.Result, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def measure(lineup: Any, *_: Any) -> Any:
        seen.extend((each.path, onnx.load(each.path)) for each in lineup.subjects)
        yield from ()

    monkeypatch.setattr(benching, "measure_cell", measure)
    with untouched(tmp_path):
        timed = onnxdecomp.bench(["in.onnx", result, onnx.load("out.onnx")])
        onnxdecomp.bench("in.onnx", settings=settings("cpu")[0], samples={"x": X[:1]})
    assert timed.names == ("in.onnx", "model 2", "model 3")
    models = [model.graph for _, model in seen]
    assert models[1] == models[2] == result.model.graph and models[0] == models[3]
    assert [path.exists() for path, _ in seen] == [True, False, False, True]


# External data
# -------------


def test_the_model_of_a_result_holds_its_data(tmp_path: Path) -> None:
    path = save_external(small_model(), tmp_path / "outside.onnx")
    result = onnxdecomp.rewrite(path, 0.25)
    assert any(t.data_location == TensorProto.EXTERNAL for t in result.rewritten.proto.graph.initializer)
    model = result.model
    result.save("whole.onnx")
    del result  # and its scratch folder
    assert not [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert nets.farthest(nets.run(onnx.load("whole.onnx"), x=PROBE), nets.run(model, x=PROBE)) == 0
    inline = onnxdecomp.rewrite("in.onnx", 0.25).model
    assert nets.farthest(nets.run(inline, x=PROBE), nets.run(model, x=PROBE)) == 0


def test_a_model_that_is_too_large_for_a_protobuf_is_to_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = onnxdecomp.rewrite(save_external(small_model(), tmp_path / "outside.onnx"), 0.25)
    monkeypatch.setattr(ir.model, "PROTOBUF_LIMIT", 1000)
    with pytest.raises(UsageError, match=r"too large .* write it with `save`"):
        _ = result.model


# Shapes, numbers, plans, folders
# -------------------------------


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": (1, 16, 8, 8)},
        {"x": [1, 16, 8, 8]},
        {"x": np.array([1, 16, 8, 8])},
        {"x": np.zeros((1, 16, 8, 8)).shape},
        {"x": tuple(map(np.int64, (1, 16, 8, 8)))},
        "x:1,16,8,8",
        ["x:1,16,8,8"],
    ],
    ids=str,
)
def test_shapes_may_be_tuples_lists_arrays_and_texts(shapes: Any) -> None:
    sites = onnxdecomp.find_sites("in.onnx")
    assert onnxdecomp.find_sites("in.onnx", input_shapes=shapes) == sites
    assert onnxdecomp.inspect("in.onnx", input_shapes=shapes).sites == tuple(sites)
    assert onnxdecomp.rewrite("in.onnx", 0.25, input_shapes=shapes).check is not None


@pytest.mark.parametrize(
    "shapes", ["x", "x:1,a", ":1", {"x": 3}, {"x": (1.5,)}, {"x": (-1, 2)}, ["x:1", "y"]]
)
def test_what_is_no_shape_is_refused(shapes: Any) -> None:
    with pytest.raises(UsageError, match=r"^`input_shapes` "):
        onnxdecomp.find_sites("in.onnx", input_shapes=shapes)


def test_numbers_may_be_those_of_numpy() -> None:
    assert Choice("svd", Ranks(np.int64(8), np.int32(8))) == Choice("svd", Ranks(8, 8))  # type: ignore[arg-type]
    assert Plan({"conv": Choice("tucker2", Ranks(np.int64(8), np.int64(8)))}).to_json()  # type: ignore[arg-type]
    for rank in (np.float32(0.25), np.float64(0.25), np.array(0.25)):
        assert onnxdecomp.rewrite("in.onnx", rank).plan.sites["conv"].ranks == Ranks(8, 8)  # type: ignore[arg-type]
    made = onnxdecomp.Budget(duration=np.float32(0.5), runs=np.int64(3))  # type: ignore[arg-type]
    assert (type(made.duration), type(made.runs)) == (float, int)
    (place,) = settings(threads=np.int64(2), batches=np.array([4]))  # type: ignore[arg-type]
    assert (place.threads, place.batch) == (2, 4)
    assert len(onnxdecomp.open_samples({"x": X}, "in.onnx", count=np.int64(5))) == 5  # type: ignore[arg-type]


def test_one_will_do_where_several_may_be() -> None:
    assert settings("cpu", threads=2, batches=8) == settings(["cpu"], threads=[2], batches=[8])
    assert settings() == settings(batches=[None])
    one, both = Preprocessing(mean=0.5, std=2, size=16), Preprocessing(mean=[0.5], std=(2,), size=[16, 16])
    assert one == both and hash(one) == hash(both)
    assert Preprocessing(mean=np.array([0.1, 0.2, 0.3])) == Preprocessing(mean=(0.1, 0.2, 0.3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "same"),
    [
        (
            Preprocessing.imagenet(scale=1),
            {"scale": 1, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        ),
        (Preprocessing.zero_to_one(size=(8, 9)), {"scale": 1 / 255, "size": (8, 9)}),
        (Preprocessing.caffe(channels="rgb"), {"scale": 1.0, "mean": (103.939, 116.779, 123.68)}),
    ],
)  # fmt: skip
def test_presets_take_what_else_is_said(made: Preprocessing, same: dict[str, Any]) -> None:
    assert made == Preprocessing(**same)
    with pytest.raises(TypeError, match="colour"):
        Preprocessing.imagenet(colour="blue")


def test_a_plan_may_be_a_file(result: onnxdecomp.Result, tmp_path: Path) -> None:
    result.plan.save("plan.json")
    assert Plan.load("plan.json") == result.plan
    text = Path("plan.json").read_text(encoding="utf-8")
    assert text == result.plan.to_json()
    Path("marked.json").write_text(text, encoding="utf-8-sig")  # as editors on Windows do
    for path in ("plan.json", Path("plan.json"), "marked.json"):
        assert onnxdecomp.rewrite("in.onnx", plan=path).plan == result.plan
    Path("bad.json").write_text('{"version": 1, "sites": {"conv": 3}}')
    with pytest.raises(UsageError, match=r"^bad\.json: plan, site 'conv'"):
        Plan.load("bad.json")
    with pytest.raises(UsageError, match=r"^`plan`: bad\.json: plan, site 'conv'"):
        onnxdecomp.rewrite("in.onnx", plan="bad.json")
    with pytest.raises(onnxdecomp.OutputError, match="no folder nodir"):
        result.plan.save("nodir/plan.json")


def test_folders_may_be_texts(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    for scratch in ("scratch", Path("scratch"), os.fspath(tmp_path)):
        assert onnxdecomp.rewrite("in.onnx", 0.25, scratch=scratch).check is not None
    for function in (
        lambda: onnxdecomp.rewrite("in.onnx", 0.25, scratch="nodir"),
        lambda: onnxdecomp.search("in.onnx", Goal("macs", 0.6), cost="macs", scratch="nodir"),
    ):
        with pytest.raises(UsageError, match="`scratch`: there is no folder nodir"):
            function()


# Samples
# -------


def test_samples_may_be_a_path_an_array_and_a_dict() -> None:
    np.savez("x.npz", x=X)
    opened = onnxdecomp.open_samples("x.npz", "in.onnx")
    sources: list[Any] = ["x.npz", Path("x.npz"), X, {"x": X}, [{"x": each} for each in X], list(X), opened]
    plain = onnxdecomp.rewrite("in.onnx", 0.25)
    models = [onnxdecomp.rewrite("in.onnx", 0.25, data=source).model for source in sources]
    assert all(model == models[0] != plain.model for model in models)
    found = [onnxdecomp.measure_quality("in.onnx", plain, source).outputs for source in sources]
    assert all(each == found[0] for each in found)
    goal = Goal("macs", 0.6)
    plans = [
        onnxdecomp.search("in.onnx", goal, cost="macs", policy=POLICY, samples=source).plan
        for source in ("x.npz", X, SampleSets.draw(opened))
    ]
    assert plans[0] == plans[1] == plans[2]


def test_what_is_compared_on_may_be_a_path_an_array_and_a_dict(result: onnxdecomp.Result) -> None:
    np.savez("x.npz", x=X)
    assert onnxdecomp.compare("in.onnx", result, "x.npz").inputs == "samples"
    one = X[:1]
    for feeds in (one, {"x": one}, [{"x": one}], [one], iter([{"x": one.astype(np.float64)}])):
        found = onnxdecomp.compare("in.onnx", result, feeds)
        assert found.inputs == "feeds" and found == onnxdecomp.compare("in.onnx", result, {"x": one})
    for feeds, says in (
        ([], "there are none"),
        ([object()], "feed 0 is an object; give dicts"),
        (range(3), "feed 0 is an int; give dicts"),
        ({"z": one}, "no array for the input 'x'"),
    ):
        with pytest.raises(UsageError, match=f"`feeds`: .*{says}"):
            onnxdecomp.compare("in.onnx", result, feeds)  # type: ignore[arg-type]


class Photos:
    """As a Dataset of PyTorch: by number and with a length, and a loop over it does not end."""

    def __init__(self, item: Callable[[int], Any], length: int = len(X)) -> None:
        self.item, self.length, self.read = item, length, list[int]()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Any:
        self.read.append(number)
        return self.item(number % self.length)


def without_the_batch_axis() -> list[Any]:
    """`X` in forms whose items lack the first axis, or are in lists, or beside labels."""
    batches = [(X[i : i + 1], np.array([3])) for i in range(len(X))]
    return [
        list(X), (each for each in X), [{"x": each} for each in X],
        X.tolist(), {"x": X.tolist()}, (each.tolist() for each in X), Photos(lambda i: X[i]),
        Photos(lambda i: (X[i], i)), Photos(lambda i: {"x": X[i]}), Photos(lambda i: ({"x": X[i]}, "cat")),
        batches, (list(each) for each in batches),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(without_the_batch_axis())))
def test_samples_may_lack_the_batch_axis_and_stand_in_lists_and_beside_labels(number: int) -> None:
    free = small_model()
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    free.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    result = onnxdecomp.rewrite(free, 0.25)
    uses: list[Callable[[Any], Any]] = [
        lambda feeds: np.concatenate([each["x"] for each in onnxdecomp.open_samples(feeds, free)]),
        lambda feeds: onnxdecomp.measure_quality(free, result, feeds).outputs[0].max_abs,
        lambda feeds: onnxdecomp.compare(free, result, feeds).outputs[0].max_abs,
        lambda feeds: onnxdecomp.rewrite(free, 0.25, data=feeds).sites[0].fit.fitted,  # type: ignore[union-attr]
    ]
    for use in uses:
        np.testing.assert_allclose(use(without_the_batch_axis()[number]), use(X), rtol=1e-6)
    assert onnxdecomp.compare(free, result, X[0]) == onnxdecomp.compare(free, result, X[:1])


def test_datasets_and_loaders_of_pytorch_are_taken() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(X)
    pairs = torch.utils.data.TensorDataset(tensor, torch.arange(len(X)))
    for source in (
        pairs,
        torch.utils.data.DataLoader(pairs, batch_size=5),
        torch.utils.data.DataLoader(tensor),
    ):
        opened = onnxdecomp.open_samples(source, "in.onnx")
        assert np.array_equal(np.concatenate([each["x"] for each in opened]), X)


def test_of_a_dataset_only_the_draw_is_read() -> None:
    photos = Photos(lambda i: (X[i], i))
    opened = onnxdecomp.open_samples(photos, "in.onnx", count=6, seed=3)
    drawn = onnxdecomp.open_samples(X, "in.onnx", count=6, seed=3).indices
    assert tuple(photos.read) == drawn and len(opened) == 6
    assert len(onnxdecomp.open_samples(Photos(photos.item), "in.onnx", count=100)) == len(X)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([(X[:2], X[2:4])], "feed 0 is a tuple; take its first element, or give dicts"),
        ([[X[:2], np.arange(2), "name"]], "feed 0 is a list; take its first element, or"),
        (["a.npy", "b.npy"], "feed 0 is a path; name one file, or the folder"),
        ([Path("a.npy")], "feed 0 is a path; name one file, or the folder"),
        (Photos(lambda i: None), "feed 0 is a NoneType; give dicts"),
    ],
)  # fmt: skip
def test_what_is_no_feed_is_refused_with_what_to_do(source: Any, says: str) -> None:
    for use in (
        lambda: onnxdecomp.open_samples(source, "in.onnx"),
        lambda: onnxdecomp.compare("in.onnx", "in.onnx", source),
    ):
        with pytest.raises(UsageError, match=says):
            use()


def test_a_pair_feeds_no_model_of_two_inputs() -> None:
    two = nets.model("two (float[N,2] a, float[N,2] b) => (float[N,2] y) { y = Add (a, b) }")
    with pytest.raises(UsageError, match="feed 0 is an ndarray; give dicts of arrays by input name"):
        onnxdecomp.open_samples([(np.ones((1, 2)), np.ones(1))], two)
    with pytest.raises(UsageError, match="feed 0 is a list; give dicts of arrays by input name"):
        onnxdecomp.open_samples([[1.0, 2.0]], two)


def test_samples_that_are_dealt_must_be_opened() -> None:
    for source in ("samples.npz", X):
        with pytest.raises(UsageError, match="`samples` takes Samples, which `open_samples` makes for"):
            SampleSets.draw(source, count=4)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="`samples` takes Samples, which `open_samples` makes for"):
            onnxdecomp.read_labels([0, 1], source)  # type: ignore[arg-type]
    opened = onnxdecomp.open_samples(X, "in.onnx")
    for count, says in ((2, "`samples`: 2 samples, but"), (1, "`samples`: 1 sample, but")):
        with pytest.raises(UsageError, match=says):
            SampleSets.draw(opened[:count])


def test_labels_may_be_an_array() -> None:
    samples = onnxdecomp.open_samples(X, "in.onnx")
    classes = np.arange(24)
    sets = SampleSets.draw(samples, count=16, labels=classes)
    assert sets.labels is not None and sets.labels.tolist() == list(sets.held_out.indices)
    listed = SampleSets.draw(samples, count=16, labels=classes.tolist())
    assert listed.labels is not None and listed.labels.tolist() == sets.labels.tolist()
    with pytest.raises(UsageError, match="`labels`: 24 samples need one class each"):
        SampleSets.draw(samples, count=16, labels=classes[:3])


def test_what_is_wrong_of_a_model_is_not_said_of_samples(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_text("no model")
    for model in ("no.onnx", "none.onnx"):
        with pytest.raises(onnxdecomp.ModelError, match=r"^`model`: "):
            onnxdecomp.open_samples({"x": X}, model)


def taking(name: str, channels: int = 16) -> onnx.ModelProto:
    """A model whose input has that name."""
    text = f"net (float[1,{channels},8,8] {name}) => (float[1,{channels},8,8] y) {{ y = Relu ({name}) }}"
    return nets.model(text)


def test_models_with_different_inputs_are_told_apart() -> None:
    one, other = taking("images"), taking("input")
    says = "the models have different inputs: images / input$"
    for use in (
        lambda: onnxdecomp.compare(one, other),
        lambda: onnxdecomp.compare(one, other, {"images": PROBE}),
        lambda: onnxdecomp.measure_quality(one, other, {"images": PROBE}),
    ):
        with pytest.raises(UsageError, match=says):
            use()
    with pytest.raises(onnxdecomp.CheckError, match=says):
        onnxdecomp.check(one, other)
    with pytest.raises(UsageError, match=r"inputs: x float32 \[1, 16, 8, 8\] / x float32 \[1, 4, 8, 8\]$"):
        onnxdecomp.compare(taking("x"), taking("x", 4))


@pytest.mark.parametrize("path", [".", "", "..", "/"])
def test_a_folder_is_no_place_for_a_model(result: onnxdecomp.Result, path: str) -> None:
    found = onnxdecomp.search("in.onnx", Goal("macs", 0.6), cost="macs", policy=POLICY)
    for save in (result.save, found.save, result.plan.save):
        with pytest.raises(UsageError, match="is a folder; name a file"):
            save(Path(path))


def test_data_that_are_gone_are_named(tmp_path: Path) -> None:
    text = small_model()
    result = onnxdecomp.rewrite(save_external(text, tmp_path / "outside.onnx"), 0.25)
    extents = list(result.rewritten.extents())
    extents[0].file.unlink()
    for use in (
        lambda: result.model,
        lambda: result.save("new.onnx"),
        lambda: onnxdecomp.check("in.onnx", result),
    ):
        with pytest.raises(onnxdecomp.ModelError, match=f"external data {extents[0].file}: No such file"):
            use()
    assert not Path("new.onnx").exists()


def test_bytes_are_explained_in_python() -> None:
    three = nets.model("net (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu (x) }")
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(UsageError) as caught:
        onnxdecomp.measure_quality(three, three, pixels)
    assert "`open_samples(…, preprocessing=Preprocessing.imagenet())`" in str(caught.value)
    onnxdecomp.open_samples(pixels, three, preprocessing=Preprocessing.imagenet())


@pytest.mark.parametrize(
    ("given", "named"),
    [({"scale": 1e308}, "scale"), ({"scale": 1.0, "mean": 1e300}, "mean"), ({"std": 1e-300}, "std")],
)
def test_preprocessing_beyond_the_type_names_its_attribute(given: dict[str, Any], named: str) -> None:
    three = nets.model("net (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu (x) }")
    with pytest.raises(UsageError, match=f"`{named}` makes values that float32 cannot hold"):
        onnxdecomp.open_samples(np.zeros((4, 8, 8, 3), np.uint8), three, preprocessing=Preprocessing(**given))


def test_choices_that_nothing_could_be_are_refused_when_made() -> None:
    with pytest.raises(UsageError, match="`method` foo: unknown; it is one of tucker2"):
        Choice("foo", Ranks(8, 8))
    for ranks, named in (((-1, 2), "input"), ((2, 0), "output")):
        with pytest.raises(UsageError, match=f"`{named}` .*: a rank is 1 or more"):
            Ranks(*ranks)


def test_a_metric_is_helped_with_its_arrays() -> None:
    def scored(feeds: Any) -> Any:
        return (
            onnxdecomp.search(
                "in.onnx",
                Goal("max_drop", 9.0),
                metric=lambda model: float(model.run(feeds)["y"].sum()),
                cost="macs",
                policy=POLICY,
            )
            .tried[0]
            .score
        )

    assert scored({"x": PROBE.astype(np.float64)}).before == scored({"x": PROBE}).before
    for feeds, says in (
        ({"images": PROBE}, " has no array for the input 'x'; it has images"),
        ({"x": PROBE[:, :3]}, "input 'x' needs shape 1×16×8×8, the samples have 1×3×8×8"),
    ):
        with pytest.raises(UsageError, match=f"`metric`: the feed.*{says}"):
            scored(feeds)
