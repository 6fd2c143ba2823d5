"""Samples: every source against NumPy and Pillow, draws, batches, labels, and what is refused."""

from __future__ import annotations

import json
import operator
import os
import pickle
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save, untouched
from hypothesis import given
from hypothesis import strategies as st
from joblib import Parallel, delayed
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image

from onnxdecomp import (
    MissingExtraError,
    Preprocessing,
    RunError,
    UsageError,
    compare,
    open_samples,
    read_labels,
)
from onnxdecomp.sampling import PRESETS


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sized(first: str, second: str = "") -> ModelProto:
    """y = Relu (x), z = 2 s: two inputs, with these first dimensions; or the first input alone."""
    if not second:
        return nets.model(f"one (float[{first},3,8,8] x) => (float[{first},3,8,8] y) {{ y = Relu (x) }}")
    return nets.model(
        f"two (float[{first},3,8,8] x, int64[{second}] s) => (float[{first},3,8,8] y, int64[{second}] z)"
        "{ y = Relu (x) z = Add (s, s) }"
    )


def taking(shape: str, kind: str = "float") -> ModelProto:
    """A model whose one input `x` has this type and shape."""
    return nets.model(f"one ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ y = Identity (x) }}")


def read(source: Any, model: ModelProto, **options: Any) -> np.ndarray:
    """All samples of the input `x`, stacked."""
    return np.concatenate([each["x"] for each in open_samples(source, model, **options).batches(32)])


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


X, S = nets.signal(4, 3, 8, 8), np.arange(4)
UNIT = Preprocessing(scale=1 / 255)


# Arrays in files
# ---------------


def lengths(model: ModelProto, **arrays: np.ndarray) -> list[int]:
    """How many samples go into each run; they are all there, in their order."""
    np.savez("samples.npz", **arrays)
    feeds = list(open_samples("samples.npz", model).batches(32))
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.concatenate([each[name] for each in feeds]), array)
    return [len(next(iter(each.values()))) for each in feeds]


@pytest.mark.parametrize(
    ("batch", "samples", "runs"),
    [
        ("N", 5, [5]),
        ("N", 70, [32, 32, 6]),
        ("4", 8, [4, 4]),
        ("1", 3, [1, 1, 1]),
        ("64", 64, [64]),
    ],
)
def test_samples_are_fed_in_batches_the_model_takes(batch: str, samples: int, runs: list[int]) -> None:
    x = nets.signal(samples, 3, 8, 8)
    assert lengths(sized(batch), x=x) == runs
    assert lengths(sized(batch, batch), x=x, s=np.arange(samples)) == runs
    assert lengths(sized("N", batch), x=x, s=np.arange(samples)) == runs
    np.save("samples.npy", x)
    assert [len(each["x"]) for each in open_samples("samples.npy", sized(batch)).batches(32)] == runs


UNFIT: dict[str, tuple[ModelProto, dict[str, Any], Sequence[str]]] = {
    "no array for an input": (sized("N", "N"), {"x": X, "t": S}, ["'s'", "x, t"]),
    "no array by the input's name": (
        sized("N"),
        {"images": X, "more": X, "labels": S},
        ["'x'", "images, more, labels"],
    ),
    "no array at all": (sized("N"), {}, ["'x'", "none"]),
    "integers for floats": (sized("N"), {"x": X.astype(np.int32)}, ["'x'", "float32", "int32"]),
    "floats for integers": (sized("N", "N"), {"x": X, "s": S * 1.0}, ["'s'", "int64", "float64"]),
    "truth values": (sized("N"), {"x": X > 0}, ["'x'", "float32", "bool"]),
    "texts": (sized("N"), {"x": X.astype(str)}, ["'x'", "float32", "<U"]),
    "bytes": (
        sized("N"),
        {"x": X.astype(np.uint8)},
        ["'x'", "float32", "uint8", "--preset imagenet", "--scale"],
    ),
    "channels last": (sized("N"), {"x": X.transpose(0, 2, 3, 1)}, ["'x'", "3×8×8", "4×8×8×3"]),
    "a scalar": (sized("N"), {"x": np.float32(1)}, ["'x'", "scalar"]),
    "fewer than the batch": (sized("5"), {"x": X}, ["5 samples at a time", "there are 4"]),
    "no samples": (sized("N"), {"x": X[:0]}, ["no samples"]),
    "different counts": (sized("N", "N"), {"x": X, "s": S[:3]}, ["x: 4, s: 3"]),
    "different counts of a fixed batch": (sized("2", "2"), {"x": X, "s": S[:2]}, ["x: 4, s: 2"]),
    "pickled objects": (sized("N"), {"x": np.array([{}], object)}, ["samples.npz"]),
    "NaN": (sized("N"), {"x": np.where(X[2, 0, 0, 0] == X, np.nan, X)}, ["'x'", "NaN", "samples.npz[2]"]),
    "infinity": (sized("N"), {"x": np.where(X.flat[0] == X, np.inf, X)}, ["Inf", "samples.npz[0]"]),
    "more than float32 holds": (sized("N"), {"x": X.astype(float) * 1e300}, ["Inf", "samples.npz[0]"]),
    "more than int32 holds": (taking("N,2", "int32"), {"x": np.array([[0, 2**31]])}, ["'x'", "int32"]),
}


@pytest.mark.parametrize("name", UNFIT)
def test_samples_that_do_not_fit_are_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    model, arrays, says = UNFIT[name]
    np.savez("samples.npz", **arrays)
    save(model, Path("a.onnx"))
    with untouched(tmp_path):
        message = cli("compare", "a.onnx", "a.onnx", "--data", "samples.npz", "--json", "out.json").refusal()
    assert all(part in message for part in says), message
    with pytest.raises(UsageError):
        list(open_samples("samples.npz", model).batches(32))


def test_a_scalar_for_an_input_of_any_rank_is_refused(cli: Cli) -> None:
    model = sized("N")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    save(model, Path("a.onnx"))
    np.save("samples.npy", np.float32(1))
    assert "'x'" in cli("compare", "a.onnx", "a.onnx", "--data", "samples.npy").refusal()


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "flipped", "missing", "folder", "pickle"])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_damaged_sample_files_are_refused(cli: Cli, tmp_path: Path, damage: str, suffix: str) -> None:
    save(sized("N"), Path("a.onnx"))
    path = Path(f"samples.{suffix}")
    np.savez(path, x=X) if suffix == "npz" else np.save(path, X)
    whole = bytearray(path.read_bytes())
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pickle":
        np.save("samples.npy", np.array([{}], object), allow_pickle=True)
        path.write_bytes(Path("samples.npy").read_bytes())
    elif damage != "missing":
        flipped = bytes(byte ^ 255 for byte in whole[:2000]) + whole[2000:]
        if suffix == "npz":
            flipped = whole[:1500] + bytes(byte ^ 255 for byte in whole[1500:1600]) + whole[1600:]
        path.write_bytes(
            {"text": b"a,b\n1,2\n", "empty": b"", "cut": whole[:700], "flipped": flipped}[damage]
        )
    with untouched(tmp_path):
        outcome = cli("compare", "a.onnx", "a.onnx", "--data", path, "--json", "out.json")
        assert str(path) in outcome.refusal()


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("float", np.float64),
        ("float", np.float16),
        ("float16", np.float64),
        ("int32", np.int64),
        ("int64", np.uint8),
        ("uint8", np.int64),
        ("uint8", np.uint8),
    ],
)
def test_floats_are_cast_to_floats_and_integers_to_integers(kind: str, given: Any) -> None:
    values = (X * 10).astype(given) if np.dtype(given).kind == "f" else pixels(4, 3, 8, 8).astype(given)
    np.save("samples.npy", values)
    found = read("samples.npy", taking("N,3,8,8", kind))
    wanted = onnx.helper.tensor_dtype_to_np_dtype(taking("1", kind).graph.input[0].type.tensor_type.elem_type)
    assert found.dtype == wanted
    np.testing.assert_array_equal(found, values.astype(wanted))


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": X},
        {"images": X, "labels": S},
        {"boxes": nets.signal(4, 2), "images": X},
        {"masks": pixels(4, 8, 8, 1), "images": X},
    ],
    ids=["sole", "sole of floats", "sole of four dimensions", "floats of two with four dimensions"],
)
def test_arrays_under_other_names_serve_where_there_is_no_doubt(arrays: dict[str, np.ndarray]) -> None:
    np.savez("samples.npz", **arrays)
    np.testing.assert_array_equal(read("samples.npz", sized("N")), X)


def test_inputs_without_a_batch_axis_come_whole_with_every_run() -> None:
    model = nets.model(
        "voice (float[N,5] x, float[2,1,3] state, int64 rate) => (float[N,5] y) { y = Relu (x) }"
    )
    arrays = {"x": nets.signal(7, 5), "state": nets.signal(2, 1, 3), "rate": np.array(8000)}
    np.savez("samples.npz", **arrays)
    feeds = list(open_samples("samples.npz", model).batches(4))
    np.testing.assert_array_equal(np.concatenate([each["x"] for each in feeds]), arrays["x"])
    for each in feeds:
        np.testing.assert_array_equal(each["state"], arrays["state"])
        assert each["rate"] == 8000 and each["rate"].shape == ()
    # Where the values differ from feed to feed, no run may mix them.
    other = arrays | {"rate": np.array(16000)}
    assert [int(f["rate"]) for f in open_samples([arrays, other], model).batches(32)] == [8000, 16000]


def test_samples_of_other_sizes_never_share_a_run() -> None:
    feeds = [{"x": nets.signal(2, 3, size, size)} for size in (4, 4, 6)]
    samples = open_samples(feeds, taking("N,3,H,W"))
    assert [each["x"].shape for each in samples.batches(8)] == [(4, 3, 4, 4), (2, 3, 6, 6)]


def test_a_folder_of_arrays_is_read_in_the_order_of_names() -> None:
    """Each file one sample, or several along a first axis."""
    Path("data").mkdir()
    np.save("data/b.npy", X[0])
    np.save("data/a.NPY.npy", X[1:3])
    np.savez("data/c.npz", x=X[3:])
    Path("data/.hidden.npy").write_text("no array")
    Path("data/readme.txt").write_text("no sample")
    np.testing.assert_array_equal(read("data", sized("N")), X[[1, 2, 0, 3]])
    samples = open_samples("data", sized("N"))
    assert [file.name for file in samples.files if file] == ["a.NPY.npy", "a.NPY.npy", "b.npy", "c.npz"]
    assert samples.names == ["data/a.NPY.npy[0]", "data/a.NPY.npy[1]", "data/b.npy", "data/c.npz"]


def test_a_folder_without_samples_is_refused(cli: Cli) -> None:
    save(sized("N"), Path("a.onnx"))
    Path("data/inner").mkdir(parents=True)
    np.save("data/inner/a.npy", X)
    assert "data has no samples" in cli("compare", "a.onnx", "a.onnx", "--data", "data").refusal()
    np.save("data/a.npy", X)
    Image.new("RGB", (8, 8)).save("data/b.png")
    message = cli("compare", "a.onnx", "a.onnx", "--data", "data", "--preset", "0-1").refusal()
    assert "b.png" in message and "a.npy" in message


# ONNX test sets
# --------------


def write_set(folder: str, *tensors: TensorProto) -> None:
    Path(folder).mkdir(parents=True)
    for i, tensor in enumerate(tensors):
        Path(folder, f"input_{i}.pb").write_bytes(tensor.SerializeToString())


def test_test_sets_are_read_in_the_order_of_their_numbers() -> None:
    """By names where they are those of the inputs, by position where they are not."""
    for number in (10, 2, 1):
        x, s = X[:1] * number, np.array([number])
        named = [numpy_helper.from_array(s, "s"), numpy_helper.from_array(x, "x")]
        unnamed = [numpy_helper.from_array(x), numpy_helper.from_array(s, "x")]
        write_set(f"zoo/test_data_set_{number}", *(named if number == 2 else unnamed))
    model = sized("N", "N")
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [1]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, "f"), "w"))
    (feeds,) = open_samples("zoo", model).batches(32)
    assert feeds["s"].tolist() == [1, 2, 10]
    np.testing.assert_array_equal(feeds["x"], np.concatenate([X[:1], X[:1] * 2, X[:1] * 10]))
    (feeds,) = open_samples("zoo/test_data_set_2", model).batches(32)
    assert feeds["s"].tolist() == [2]


@pytest.mark.parametrize("damage", ["cut", "text", "external", "missing"])
def test_damaged_test_sets_are_refused(damage: str) -> None:
    tensor = numpy_helper.from_array(X, "x")
    write_set("test_data_set_0", tensor)
    path = Path("test_data_set_0/input_0.pb")
    if damage == "external":
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        path.write_bytes(tensor.SerializeToString())
    elif damage == "missing":
        path.rename("test_data_set_0/output_0.pb")
    else:
        path.write_bytes(b"no tensor" if damage == "text" else path.read_bytes()[:-9])
    with pytest.raises(UsageError, match="test_data_set_0"):
        open_samples("." if damage == "missing" else "test_data_set_0", sized("N"))


def test_fewer_tensors_than_inputs_are_refused() -> None:
    write_set("test_data_set_0", numpy_helper.from_array(X, "x"))
    with pytest.raises(UsageError, match=r"has 1 input_\*.pb, the model has 2 inputs"):
        open_samples("test_data_set_0", sized("N", "N"))


# Feeds in Python
# ---------------


class Reader(CalibrationDataReader):
    """ONNX Runtime's own way to give samples."""

    def __init__(self, feeds: Iterable[dict[str, np.ndarray]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def test_feeds_and_readers_are_taken_as_they_are() -> None:
    feeds = [{"x": X[:3], "more": S}, {"x": X[3:]}]
    for source in (feeds, iter(feeds), Reader(feeds)):
        samples = open_samples(source, sized("N"))
        np.testing.assert_array_equal(next(samples.batches(32))["x"], X)
        np.testing.assert_array_equal(next(samples.batches(32))["x"], X)  # as often as wanted
        assert samples.names == ["feed 0[0]", "feed 0[1]", "feed 0[2]", "feed 1"]
        assert samples.files == [None] * 4


def test_of_an_endless_reader_the_first_samples_are_taken() -> None:
    def endless() -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield {"x": X}

    for source in (endless(), Reader(endless())):
        np.testing.assert_array_equal(read(source, sized("N"), count=6), np.concatenate([X, X[:2]]))


@pytest.mark.parametrize("source", [[], iter([]), Reader([]), [{"x": X[:0]}]])
def test_no_feeds_are_refused(source: Any) -> None:
    with pytest.raises(UsageError, match="no samples"):
        open_samples(source, sized("N"))


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        (range(3), "`source`: feed 0 is an int; give dicts of arrays by input name"),
        ([{"x": print}], "`source`: feed 0: input 'x' is no array of numbers but a builtin_function"),
        ([{"x": [[1], [1, 2]]}], "`source`: feed 0: input 'x' is no array: "),
        ([{"x": X}, {"y": X}], "feed 1 has no array for the input 'x'; it has y"),
        ([{"x": X}, {"x": X[:, :2]}], "feed 1: input 'x' needs shape \\?×3×8×8, the samples have 4×2×8×8"),
        ([{"x": X > 0}], "feed 0: input 'x' needs float32, the samples have bool"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(feeds: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_samples(feeds, sized("N"))


def test_compare_takes_samples_and_plain_feeds_alike() -> None:
    a, b = save(sized("2"), Path("a.onnx")), save(sized("2"), Path("b.onnx"))
    samples = open_samples([{"x": X}], sized("2"))
    assert compare(a, b, samples.batches(32)) == compare(a, b, [{"x": X[:2]}, {"x": X[2:]}])


# Draws and batches
# -----------------


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 5), st.sampled_from([0, 1, 3, 4]))
def test_a_draw_is_sorted_without_repetition_and_fills_the_batches(
    total: int, count: int, seed: int, batch: int
) -> None:
    model = taking(f"{batch or 'N'},1")
    source = [{"x": np.arange(total, dtype=np.float32)[:, None]}]
    wanted = min(count, total)
    if batch and wanted < batch:
        with pytest.raises(UsageError, match=f"takes {batch} samples at a time; there are {wanted}"):
            open_samples(source, model, count=count, seed=seed)
        return
    samples = open_samples(source, model, count=count, seed=seed)
    assert len(samples) == wanted // (batch or 1) * (batch or 1)
    assert samples.indices == open_samples(source, model, count=count, seed=seed).indices
    assert list(samples.indices) == sorted(set(samples.indices)) and samples.indices[-1] < total
    assert (samples.note is None) == (len(samples) == wanted)
    found = [each["x"] for each in samples.batches(7)]
    assert {len(each) for each in found[:-1]} <= {batch or 7}
    assert np.concatenate(found).ravel().tolist() == list(samples.indices)
    chosen = range(len(samples) - 1, -1, -1)
    reverse = [each["x"] for each in samples.subset(chosen).batches(7)]
    assert np.concatenate(reverse).ravel().tolist() == list(samples.indices)[::-1]
    picked = [each["x"] for each in samples.batches(7, chosen)]
    np.testing.assert_array_equal(np.concatenate(picked), np.concatenate(reverse))


def test_another_seed_draws_others() -> None:
    source = [{"x": nets.signal(50, 1)}]
    draws = {open_samples(source, taking("N,1"), count=5, seed=seed).indices for seed in range(5)}
    assert len(draws) == 5


def test_a_subset_that_fills_no_batch_is_refused() -> None:
    samples = open_samples([{"x": X}], sized("2"))
    with pytest.raises(UsageError, match="takes 2 samples at a time"):
        list(samples.subset([1]).batches(32))


def test_the_command_draws_and_says_what_is_left_out(cli: Cli) -> None:
    save(sized("3"), Path("a.onnx"))
    np.save("x.npy", nets.signal(8, 3, 8, 8))
    outcome = cli("compare", "a.onnx", "a.onnx", "--data", "x.npy", "--samples", 7)
    assert outcome.code == 0 and outcome.out.endswith(
        "1 of 7 samples left out: the model takes 3 at a time\n"
    )
    assert "--samples" in cli("compare", "a.onnx", "a.onnx", "--data", "x.npy", "--samples", 0).refusal()


# Images and bytes
# ----------------


def by_hand(rgb: np.ndarray, given: Preprocessing, layout: str = "nchw") -> np.ndarray:
    """(x · scale − mean) / std of pictures N×H×W×C, in the model's order of channels."""
    x = rgb[..., ::-1] if given.channels == "bgr" else rgb
    scale = 1 if given.scale is None else given.scale
    y = (x * scale - np.array(given.mean or 0)) / np.array(given.std or 1)
    return (np.moveaxis(y, -1, 1) if layout == "nchw" else y).astype(np.float32)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("shape", "layout"), [("N,3,8,8", "nchw"), ("N,8,8,3", "nhwc"), ("N,C,H,W", "nchw")])
def test_images_and_bytes_become_what_the_formula_says(preset: str, shape: str, layout: str) -> None:
    rgb, given = pixels(3, 8, 8, 3), Preprocessing(size=(8, 8), **PRESETS[preset])
    Path("photos").mkdir()
    for name, picture in zip(("b.png", "a.BMP", "c.Png"), rgb[[1, 0, 2]], strict=True):
        Image.fromarray(picture).save(Path("photos", name))
    np.savez("photos.npz", x=rgb, y=S[:3])
    wanted = by_hand(rgb, given, layout)
    for source in ("photos", "photos.npz", [{"x": rgb}]):
        found = read(source, taking(shape), preprocessing=given)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted)


def test_bytes_for_a_model_of_bytes_are_left_alone() -> None:
    x = pixels(4, 8, 8, 3)
    np.testing.assert_array_equal(read([{"x": x}], taking("N,8,8,3", "uint8")), x)
    Path("photos").mkdir()
    for i in range(4):
        Image.fromarray(x[i]).save(f"photos/{i}.png")
    np.testing.assert_array_equal(read("photos", taking("N,8,8,3", "uint8")), x)
    bgr = read("photos", taking("N,3,8,8", "uint8"), preprocessing=Preprocessing(channels="bgr"))
    np.testing.assert_array_equal(bgr, x[..., ::-1].transpose(0, 3, 1, 2))
    with pytest.raises(UsageError, match="leave out `scale`"):
        open_samples("photos", taking("N,8,8,3", "uint8"), preprocessing=UNIT)


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ("N,3,6,7", None, (1, 3, 6, 7)),
        ("N,6,7,3", None, (1, 6, 7, 3)),
        ("N,3,6,3", None, (1, 3, 6, 3)),  # ambiguous
        ("N,3,6,3", "nhwc", (1, 3, 6, 3)),
        ("N,1,6,7", None, (1, 1, 6, 7)),
        ("N,6,7,1", None, (1, 6, 7, 1)),
    ],
)
def test_images_take_the_layout_and_the_size_of_the_input(
    shape: str, layout: str | None, expected: tuple[int, ...]
) -> None:
    Path("photos").mkdir()
    photo = Image.fromarray(pixels(20, 30, 3))
    photo.save("photos/a.png")
    found = read("photos", taking(shape), preprocessing=Preprocessing(scale=1, layout=layout))
    assert found.shape == expected
    nhwc = layout == "nhwc" or expected[1] not in (1, 3)
    height, width, channels = expected[1:] if nhwc else (*expected[2:], expected[1])
    grey = photo.convert("L") if channels == 1 else photo
    small = np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    small = small.reshape(1, height, width, channels)
    np.testing.assert_array_equal(found, small if nhwc else small.transpose(0, 3, 1, 2))


def test_bytes_are_resized_only_where_a_size_is_asked_for() -> None:
    x = pixels(2, 10, 12, 3)
    says = r"needs shape \?×3×8×8, the samples have 1×3×10×12; give `Preprocessing.size` 8,8"
    with pytest.raises(UsageError, match=says):
        read([{"x": x}], sized("N"), preprocessing=UNIT)
    assert read([{"x": x}], taking("N,3,H,W"), preprocessing=UNIT).shape == (2, 3, 10, 12)
    resized = [Image.fromarray(each).resize((8, 8), Image.Resampling.BILINEAR) for each in x]
    small = np.stack([np.asarray(each) for each in resized])
    given = Preprocessing(scale=1 / 255, size=(8, 8))
    np.testing.assert_array_equal(read([{"x": x}], sized("N"), preprocessing=given), by_hand(small, given))
    with pytest.raises(UsageError, match=r"give `Preprocessing\.size` 8,8"):
        read([{"x": x}], sized("N"), preprocessing=Preprocessing(scale=1, size=(9, 9)))


def test_images_are_turned_upright_and_lose_their_alpha() -> None:
    rgb = pixels(8, 8, 3)
    whole = Image.fromarray(rgb)
    Path("photos").mkdir()
    alpha = whole.copy()
    alpha.putalpha(Image.fromarray(pixels(8, 8)))
    alpha.save("photos/a.png")
    sideways = Image.fromarray(np.rot90(rgb))
    exif = sideways.getexif()
    exif[0x0112] = 6  # turn clockwise by a quarter to see it upright
    sideways.save("photos/b.png", exif=exif)
    alpha.save("photos/c.webp", lossless=True, exact=True)
    few = whole.quantize(8)
    few.info["transparency"] = bytes(range(8))
    few.save("photos/d.png")
    found = read("photos", sized("N"), preprocessing=Preprocessing(scale=1)).transpose(0, 2, 3, 1)
    for picture in found[:3]:
        np.testing.assert_array_equal(picture, rgb)
    np.testing.assert_array_equal(found[3], np.asarray(whole.quantize(8).convert("RGB")))


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "16 bits"])
def test_a_broken_image_is_named(cli: Cli, damage: str) -> None:
    save(sized("N"), Path("a.onnx"))
    Path("photos").mkdir()
    Image.fromarray(pixels(8, 8, 3)).save("photos/a.png")
    if damage == "16 bits":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save("photos/b.png")
    else:
        whole = Path("photos/a.png").read_bytes()
        Path("photos/b.png").write_bytes({"cut": whole[:90], "text": b"no image", "empty": b""}[damage])
    message = cli("compare", "a.onnx", "a.onnx", "--data", "photos", "--preset", "0-1").refusal()
    assert "photos/b.png" in message


def test_images_are_decoded_when_they_are_read() -> None:
    Path("photos").mkdir()
    Path("photos/a.png").write_text("no image")
    samples = open_samples("photos", sized("N"), preprocessing=UNIT)
    Image.fromarray(pixels(8, 8, 3)).save("photos/a.png")
    assert next(samples.batches(1))["x"].shape == (1, 3, 8, 8)


def test_images_without_pillow_name_the_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/a.png")
    save(sized("N"), Path("a.onnx"))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError):
        open_samples("photos", sized("N"), preprocessing=UNIT)
    message = cli("compare", "a.onnx", "a.onnx", "--data", "photos", "--preset", "0-1").refusal()
    assert message == 'Pillow is not installed: pip install "onnxdecomp[images]"'


NO_IMAGES: dict[str, tuple[ModelProto, list[str], str]] = {
    "no preprocessing": (
        sized("N"),
        [],
        "say what 0 to 255 become, by --preset imagenet, 0-1 or caffe, or --scale, --mean, --std",
    ),
    "bytes": (
        taking("N,8,8,3", "uint8"),
        ["--scale", "1"],
        "leave out --scale, --mean and --std",
    ),
    "a size alone": (sized("N"), ["--image-size", "8"], "say what 0 to 255 become"),
    "no size": (taking("N,3,H,W"), ["--preset", "0-1"], "give --image-size H,W"),
    "another size": (sized("N"), ["--preset", "0-1", "--image-size", "9,8"], "give --image-size 8,8"),
    "two inputs": (sized("N", "N"), ["--preset", "0-1"], "images feed one input, the model has 2"),
    "a vector": (taking("N,3"), ["--preset", "0-1"], "takes no images"),
    "integers": (taking("N,3,8,8", "int32"), ["--preset", "0-1"], "takes no images"),
    "four channels": (taking("N,4,8,8"), ["--preset", "0-1"], "has 4 channels as nchw"),
    "the other layout": (sized("N"), ["--preset", "0-1", "--layout", "nhwc"], "has 8 channels as nhwc"),
    "a grey model": (taking("N,1,8,8"), ["--preset", "imagenet"], "has 1 channels, --mean has 3 values"),
    "two means": (sized("N"), ["--mean", "1,2"], "has 3 channels, --mean has 2 values"),
    "no preset": (
        sized("N"),
        ["--preset", "mine"],
        "'mine' is not one of 'imagenet', '0-1', 'caffe'",
    ),
    "no numbers": (sized("N"), ["--mean", "1;2"], "--mean 1;2: write numbers"),
    "no finite numbers": (sized("N"), ["--mean", "nan"], "--mean: give finite numbers"),
    "a zero": (sized("N"), ["--std", "1,0,1"], "--std: nothing can be divided by 0"),
    "no size at all": (sized("N"), ["--image-size", "8x8"], "--image-size 8x8: write H,W"),
    "a size of zero": (sized("N"), ["--image-size", "0"], "--image-size: give a height"),
    "no channels": (sized("N"), ["--channels", "rbg"], "'--channels': 'rbg' is not one of 'rgb', 'bgr'"),
    "no layout": (sized("N"), ["--layout", "chw"], "'--layout': 'chw' is not one of 'nchw', 'nhwc'"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_images_that_cannot_be_used_are_refused(cli: Cli, name: str) -> None:
    model, options, says = NO_IMAGES[name]
    save(model, Path("a.onnx"))
    Path("photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/a.png")
    assert says in cli("compare", "a.onnx", "a.onnx", "--data", "photos", *options).refusal()


def test_preprocessing_that_has_nothing_to_do_is_refused(cli: Cli) -> None:
    save(sized("N"), Path("a.onnx"))
    np.save("x.npy", X)
    message = cli("compare", "a.onnx", "a.onnx", "--data", "x.npy", "--preset", "imagenet").refusal()
    assert "x.npy: preprocessing is for images" in message
    for options in (["--preset", "0-1"], ["--samples", "3"]):
        assert "--data" in cli("compare", "a.onnx", "a.onnx", *options).refusal()


def test_a_comparison_on_photos_is_that_of_onnxruntime_on_the_same_pixels(cli: Cli) -> None:
    weights = {"w": nets.weight(4, 3, 3, 3), "v": nets.weight(4, 3, 3, 3, seed=9)}
    text = "one (float[1,3,8,8] x) => (float[1,4,6,6] y) {{ y = Conv (x, {}) }}"
    a, b = (nets.model(text.format(name), **{name: weights[name]}) for name in weights)
    save(a, Path("a.onnx"))
    save(b, Path("b.onnx"))
    rgb = pixels(5, 8, 8, 3)
    Path("photos").mkdir()
    for i, picture in enumerate(rgb):
        Image.fromarray(picture).save(f"photos/{i}.png")
    outcome = cli(
        "compare", "a.onnx", "b.onnx", "--data", "photos", "--preset", "imagenet", "--json", "out.json"
    )
    assert outcome.code == 0, outcome
    x = by_hand(rgb, Preprocessing(**PRESETS["imagenet"]))
    y, z = (np.concatenate([nets.run(m, x=each[None])["y"] for each in x]).astype(float) for m in (a, b))
    (found,) = json.loads(Path("out.json").read_text())["outputs"]
    assert found["relative_l2"] == pytest.approx(np.linalg.norm(y - z) / np.linalg.norm(y), rel=1e-6)


def test_files_of_samples_are_never_overwritten(cli: Cli, tmp_path: Path) -> None:
    save(sized("N"), Path("a.onnx"))
    Path("photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/a.png")
    write_set("test_data_set_0", numpy_helper.from_array(X, "x"))
    with untouched(tmp_path):
        for source, target in (("photos", "a.png"), ("test_data_set_0", "input_0.pb")):
            preset = ["--preset", "0-1"] if source == "photos" else []
            outcome = cli(
                "compare", "a.onnx", "a.onnx", "--data", source, *preset, "--json", Path(source, target)
            )
            assert "never overwritten" in outcome.refusal()


# Labels
# ------


def test_labels_follow_the_draw() -> None:
    x, y = nets.signal(40, 3, 8, 8), np.arange(40) * 3
    np.savez("data.npz", x=x, y=y.astype(np.uint8))
    np.savez("other.npz", classes=y[:, None])
    np.save("y.npy", y)
    samples = open_samples("data.npz", sized("N"), count=7, seed=3)
    for spec in ("y", "other.npz:classes", "y.npy", "data.npz:y"):
        found = read_labels(spec, samples)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, np.array(samples.indices) * 3)
    np.testing.assert_array_equal(read_labels("y", samples.subset([6, 0])), read_labels("y", samples)[[6, 0]])


@pytest.mark.parametrize("header", ["", "file,class\n", "\ufefffile,class\n"])
def test_labels_in_a_table_match_by_file_name(header: str) -> None:
    Path("photos").mkdir()
    for i in range(9):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(f"photos/{i}.png")
    rows = [f"somewhere/{i}.png, {i * 2}\n" for i in (4, 8, 1, 0, 2, 3, 5, 7, 6, 77)]
    Path("classes.csv").write_text(header + "".join(rows), encoding="utf-8")
    samples = open_samples("photos", sized("N"), preprocessing=Preprocessing(scale=1), count=5)
    labels = read_labels("classes.csv", samples)
    reds = np.concatenate([each["x"][:, 0, 0, 0] for each in samples.batches(2)])
    np.testing.assert_array_equal(labels, reds * 2)


NO_LABELS = {
    "no file and no key": ("z", "data.npz has no array 'z'; it has x, y, f, m"),
    "no such key": ("data.npz:z", "has no array 'z'"),
    "no key": ("data.npz", "name the array too, as in data.npz:y"),
    "no such table": ("no.csv", "cannot read the labels no.csv: No such file"),
    "no such array": ("no.npy", "cannot read the labels no.npy: No such file"),
    "no integers": ("f", "classes are integers, the array has float64"),
    "too many": ("m", "4 samples need one class each, the array has the shape [4, 2]"),
    "not every file": ("few.csv", "no class for data.npz[0] (4 of 4 lack one)"),
    "a word": ("words.csv", "row 2 is no file and integer class: data.npz,cat"),
    "three columns": ("three.csv", "row 1 is no file and integer class: data.npz,1,2"),
    "two classes": ("twice.csv", "row 2 gives data.npz another class than before"),
    "no text": ("binary.csv", "cannot read the labels binary.csv"),
}


@pytest.mark.parametrize("name", NO_LABELS)
def test_labels_that_do_not_fit_are_refused(name: str) -> None:
    np.savez("data.npz", x=X, y=S, f=S / 2, m=np.zeros((4, 2), int))
    Path("few.csv").write_text("a.png,1\n")
    Path("words.csv").write_text("file,class\ndata.npz,cat\n")
    Path("three.csv").write_text("data.npz,1,2\n")
    Path("twice.csv").write_text("data.npz,1\ndata.npz,2\n")
    Path("binary.csv").write_bytes(b"\xff\xfe\x00")
    spec, says = NO_LABELS[name]
    with pytest.raises(UsageError) as refusal:
        read_labels(spec, open_samples("data.npz", sized("N")))
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_name_of_an_array_means_nothing_to_feeds() -> None:
    with pytest.raises(UsageError, match="`labels` y: no such file; give a CSV"):
        read_labels("y", open_samples([{"x": X}], sized("N")))


# What a feed may be
# ------------------


def rows_of(array: np.ndarray) -> dict[str, Any]:
    """Samples one by one, without a batch axis, as every kind of source that can have them."""
    Path("rows").mkdir(exist_ok=True)
    for number, row in enumerate(array):
        np.save(f"rows/{number:03}.npy", row)
    feeds = [{"x": row} for row in array]
    return {
        "generator": iter(feeds),
        "list": feeds,
        "reader": Reader(feeds),
        "bare": iter(array),
        "files": "rows",
    }


@pytest.mark.parametrize("kind", ["generator", "list", "reader", "bare", "files"])
@pytest.mark.parametrize("count", [1, 7, 24, 30, None])
@pytest.mark.parametrize("bytes_", [False, True])
def test_rows_without_a_batch_axis_are_one_sample_each(kind: str, count: int | None, bytes_: bool) -> None:
    array = pixels(24, 8, 8, 3) if bytes_ else nets.signal(24, 3, 8, 8)
    options = {"preprocessing": UNIT} if bytes_ else {}
    whole = by_hand(array, UNIT) if bytes_ else array
    samples = open_samples(rows_of(array)[kind], sized("N"), count=count, **options)
    assert len(samples) == min(count or 24, 24)
    found = np.concatenate([each["x"] for each in samples.batches(5)])
    np.testing.assert_array_equal(found, whole[list(samples.indices)])


def test_rows_fill_the_batches_of_a_model_and_those_of_several_inputs_are_counted_together() -> None:
    array = nets.signal(10, 3, 8, 8)
    samples = open_samples(iter([{"x": row} for row in array]), sized("4"), count=9)
    assert (len(samples), samples.note) == (8, "1 of 9 samples left out: the model takes 4 at a time")
    pairs = open_samples(
        ({"x": row, "s": np.array([i])} for i, row in enumerate(array)), sized("N", "N"), count=6
    )
    assert [each["s"].tolist() for each in pairs.batches(4)] == [[0, 1, 2, 3], [4, 5]]


class Reusing:
    """A reader that fills one array again and again."""

    def __init__(self) -> None:
        self.buffer, self.left = np.empty((2, 3, 8, 8), np.float32), 4

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.left -= 1
        self.buffer[:] = self.left
        return {"x": self.buffer} if self.left >= 0 else None


@pytest.mark.parametrize("tensors", [False, True])
def test_what_is_kept_of_a_feed_is_a_copy(tensors: bool) -> None:
    torch = pytest.importorskip("torch")
    made: list[Any] = [Reusing(), iter(Reusing().get_next, None)]
    if tensors:
        made = [({"x": torch.from_numpy(feed["x"])} for feed in iter(Reusing().get_next, None))]
    for source in made:
        assert [int(feed["x"].flat[0]) for feed in open_samples(source, sized("N"))] == [
            3,
            3,
            2,
            2,
            1,
            1,
            0,
            0,
        ]
    feed = {"x": X.copy()}
    samples = open_samples([feed], sized("N"))
    feed["x"][:] = 0
    np.testing.assert_array_equal(next(samples.batches(4))["x"], X)


def test_tensors_are_taken_as_arrays_are() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(X.copy()).requires_grad_()
    for source in (tensor, {"x": tensor}, [{"x": tensor}], [*tensor], iter([torch.nn.Parameter(tensor)])):
        np.testing.assert_array_equal(read(source, sized("N")), X)
    half = tensor.detach().to(torch.bfloat16)
    np.testing.assert_array_equal(read({"x": half}, sized("N")), half.float().numpy())
    np.testing.assert_array_equal(
        read({"x": half[:, :, ::2, ::2]}, taking("N,3,4,4")), half[:, :, ::2, ::2].float().numpy()
    )
    found = compare(sized("N"), sized("N"), {"x": half})
    assert found[0].relative_l2 == 0
    with pytest.raises(UsageError, match="`source`: feed 0: input 'x' is no array: "):
        open_samples({"x": torch.empty(2, 3, device="meta")}, sized("N"))


def test_bfloat16_is_taken_where_the_input_takes_it() -> None:
    half = X.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(read({"x": half}, sized("N")), half.astype(np.float32))
    found = read({"x": half}, taking("N,3,8,8", "bfloat16"))
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, half)
    same = taking("N,3,8,8", "bfloat16")
    with pytest.raises(RunError, match="takes no bfloat16 from Python, which is the type of input 'x'"):
        compare(same, same, {"x": half})
    with pytest.raises(
        UsageError, match="`source`: feed 0: input 'x' needs int64, the samples have bfloat16"
    ):
        open_samples({"x": half}, taking("N,3,8,8", "int64"))


# Samples as a sequence
# ---------------------


@pytest.mark.parametrize("batch", ["N", "4"])
def test_samples_are_indexed_sliced_and_iterated(batch: str) -> None:
    x = nets.signal(12, 3, 8, 8)
    samples = open_samples(x, sized(batch), count=8)
    drawn = x[list(samples.indices)]
    for index in (0, 3, 7, -1, -8, np.int64(2)):
        np.testing.assert_array_equal(samples[index]["x"], drawn[index][None])
    for part in (slice(2, 6), slice(None, None, -1), slice(0, 0), slice(-4, None)):
        assert samples[part].indices == samples.indices[part]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in samples]), drawn)
    assert [feed["x"].shape for feed in samples] == [(1, 3, 8, 8)] * 8
    for index in (8, -9):
        with pytest.raises(IndexError):
            samples[index]
    with pytest.raises(TypeError):
        samples["x"]  # type: ignore[call-overload]


def sources_to_send() -> list[Any]:
    Path("photos").mkdir()
    for i in range(6):
        Image.fromarray(pixels(8, 8, 3, seed=i)).save(f"photos/{i}.png")
    np.savez("bytes.npz", x=pixels(6, 8, 8, 3))
    return ["photos", "bytes.npz", [{"x": row} for row in pixels(6, 8, 8, 3)]]


def test_samples_can_be_sent_to_another_process() -> None:
    for source in sources_to_send():
        samples = open_samples(source, sized("N"), preprocessing=UNIT, count=5)
        wanted = [feed["x"] for feed in samples]
        copy = pickle.loads(pickle.dumps(samples))
        assert (copy.names, copy.indices, copy.path) == (samples.names, samples.indices, samples.path)
        np.testing.assert_array_equal([feed["x"] for feed in copy], wanted)
        found = Parallel(n_jobs=2)(delayed(operator.getitem)(samples, index) for index in range(5))
        np.testing.assert_array_equal([feed["x"] for feed in found], wanted)


def test_samples_sent_to_another_process_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, *_ = sources_to_send()
    samples = open_samples(source, sized("N"), preprocessing=UNIT)
    wanted, sent = [feed["x"] for feed in samples], pickle.dumps(samples)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal([feed["x"] for feed in pickle.loads(sent)], wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_pixels_of_its_own() -> None:
    """Both add to what was decoded before the fork, one after the other, and read it again."""
    source, *_ = sources_to_send()
    samples = open_samples(source, sized("N"), preprocessing=UNIT)
    wanted = [feed["x"] for feed in open_samples(source, sized("N"), preprocessing=UNIT)]
    np.testing.assert_array_equal(samples[0]["x"], wanted[0])
    (told, tell), (asked, ask) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(ask)
        first = samples[1]["x"]
        os.write(tell, b"!")
        os.read(asked, 1)
        os._exit(not (np.array_equal(first, wanted[1]) and np.array_equal(samples[1]["x"], wanted[1])))
    os.close(tell)
    os.read(told, 1)
    np.testing.assert_array_equal(samples[2]["x"], wanted[2])
    os.write(ask, b"!")
    assert os.waitpid(child, 0)[1] == 0
    for end in (told, asked, ask):
        os.close(end)
