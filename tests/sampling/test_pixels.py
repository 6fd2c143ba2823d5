"""Images are decoded once; labels alone are read out of a file of several arrays."""

from __future__ import annotations

import gc
import weakref
import zipfile
from collections import Counter
from pathlib import Path

import nets
import numpy as np
import pytest
from onnx import ModelProto
from PIL import Image

from onnxdecomp import Preprocessing, UsageError, open_samples, read_labels
from onnxdecomp.sampling.arrays import ArrayFile
from onnxdecomp.sampling.images import ImageInput
from onnxdecomp.sampling.pixels import Pixels

UNIT = Preprocessing(scale=1 / 255)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()


def taking(shape: str, kind: str = "float") -> ModelProto:
    return nets.model(f"one ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ y = Identity (x) }}")


def photos(count: int, *, size: int = 8) -> None:
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(values).save(f"photos/{i}.png")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded."""
    found: Counter[str] = Counter()
    whole = ImageInput.read

    def counted(self: ImageInput, path: Path) -> np.ndarray:
        found[path.name] += 1
        return whole(self, path)

    monkeypatch.setattr(ImageInput, "read", counted)
    return found


@pytest.mark.parametrize("kind", ["float", "float16", "uint8"])
@pytest.mark.parametrize("size", [8, 13])
def test_every_image_is_decoded_once_over_several_passes(kind: str, size: int, decoded: Counter[str]) -> None:
    photos(5, size=size)
    options = Preprocessing() if kind == "uint8" else UNIT
    samples = open_samples("photos", taking("N,3,8,8", kind), preprocessing=options)
    passes = [np.concatenate([each["x"] for each in samples.batches(2)]) for _ in range(3)]
    assert decoded == {f"{i}.png": 1 for i in range(5)}
    assert all(each.tobytes() == passes[0].tobytes() for each in passes)


def test_subsets_share_what_was_decoded(decoded: Counter[str]) -> None:
    photos(4)
    samples = open_samples("photos", taking("N,3,8,8"), preprocessing=UNIT)
    halves = samples.subset([0, 2]), samples.subset([1, 3])
    mixed = zip(*(half.batches(1) for half in halves), strict=True)
    parts = [feeds["x"] for pair in mixed for feeds in pair]
    whole = next(samples.batches(4))["x"]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert set(decoded.values()) == {1}


def test_a_damaged_image_raises_the_same_error_on_every_pass() -> None:
    photos(1)
    Path("photos/1.png").write_bytes(Path("photos/0.png").read_bytes()[:90])
    samples = open_samples("photos", taking("N,3,8,8"), preprocessing=UNIT)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"cannot read the image photos/1\.png"):
            list(samples.batches(1))


def test_the_file_is_closed_when_the_samples_go() -> None:
    pixels = Pixels(lambda path: np.zeros((1, 2, 2, 3), np.uint8))
    pixels.read(Path("a"))
    file, gone = pixels._file, weakref.ref(pixels)
    assert file is not None and not file.closed
    del pixels
    gc.collect()
    assert gone() is None and file.closed


def test_without_room_on_disk_images_are_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    calls: list[Path] = []

    def decode(path: Path) -> np.ndarray:
        calls.append(path)
        return np.full((1, 2, 2, 3), len(calls), np.uint8)

    pixels = Pixels(decode)
    assert [int(pixels.read(Path("a")).max()) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("spec", ["y", "samples.npz:y"])
def test_labels_leave_the_other_arrays_of_a_file_unread(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez("samples.npz", x=nets.signal(4, 3, 8, 8), y=np.arange(4), z=np.arange(9))
    samples = open_samples("samples.npz", taking("N,3,8,8"))
    read: list[str] = []
    whole = ArrayFile.read

    def counted(self: ArrayFile, name: str) -> np.ndarray:
        read.append(name)
        return whole(self, name)

    monkeypatch.setattr(ArrayFile, "read", counted)
    assert read_labels(spec, samples).tolist() == [0, 1, 2, 3]
    assert read == ["y"]


def test_a_damaged_array_of_labels_is_refused() -> None:
    np.savez("samples.npz", x=nets.signal(4, 3, 8, 8))
    with zipfile.ZipFile("samples.npz", "a") as file:
        file.writestr("y.npy", b"no array")
    samples = open_samples("samples.npz", taking("N,3,8,8"))
    with pytest.raises(UsageError, match="cannot read the labels"):
        read_labels("y", samples)
