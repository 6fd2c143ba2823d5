"""Files that are not what they say, and samples that say nothing: one line, and nothing written."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import nets
import numpy as np
import onnxruntime
import pytest
from conftest import Cli, save, small_model, untouched
from PIL import Image

import onnxdecomp
from onnxdecomp import RunError, UsageError, ir
from onnxdecomp.sampling.arrays import open_arrays

X = nets.signal(8, 16, 8, 8)
COMPARE = ("compare", "in.onnx", "in.onnx", "--data")
REWRITE = ("rewrite", "in.onnx", "o.onnx", "--rank", "0.25")
SEARCH = ("search", "in.onnx", "o.onnx", "--macs", "0.5", "--cost", "macs")


@pytest.fixture(autouse=True)
def _here(small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.chdir(small.parent)
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path_factory.mktemp("cache")))


# Archives
# --------


def saved(array: object = X) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def headed(text: str, version: int = 1, body: bytes = bytes(64)) -> bytes:
    """An .npy file with that text for a header."""
    length = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + b"\n" + body


def describing(shape: object, descr: object = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return stream.getvalue()


def patched(field: int, value: int) -> bytes:
    """An archive with a byte of its member's two headers changed, which stand 2 bytes apart in them."""
    raw = bytearray(archive(x=saved()))
    raw[field] = raw[raw.rfind(b"PK\x01\x02") + field + 2] = value
    return bytes(raw)


WHOLE = archive(x=saved())
ARCHIVES = {
    "encrypted": patched(6, 1),
    "strong encryption": patched(6, 0x41),
    "unknown compression": patched(8, 97),
    "compressed by what is not": patched(8, 8),
    "bzip2 that is none": patched(8, 12),
    "LZMA that is none": patched(8, 14),
    "newer than any program": patched(4, 99),
    "cut in the middle": WHOLE[: len(WHOLE) // 2],
    "cut at the end": WHOLE[:-7],
    "end alone": WHOLE[-22:],
    "another checksum": WHOLE.replace(X.tobytes()[:8], b"damaged!"),
    "a member of text": archive(x=b"text"),
    "a member of nothing": archive(x=b""),
    "an array of objects": archive(x=saved(np.array([{}], object))),
    "a member that is shorter than its header says": archive(x=saved()[:-1]),
}
HEADERS = {
    "of terabytes": headed(describing("(1000000, 1000000)")),
    "beyond 64 bits": headed(describing("(1" + "0" * 40 + ",)")),
    "negative": headed(describing("(-4, -4)")),
    "of no tuple": headed(describing("7")),
    "of floats": headed(describing("(1.5,)")),
    "unclosed": headed("'''"),
    "unbalanced": headed("{" * 900),
    "an expression": headed("__import__('os').abort()"),
    "deep": headed(describing("(" * 300 + ")" * 300)),
    "of an unknown type": headed(describing("(4,)", "'<q9'")),
    "of a type in itself": headed(describing("(4,)", "[('a', [('b', '<f4')])]"), body=b""),
    "of version 2": headed(describing("(1" + "0" * 30 + ",)"), version=2),
    "of version 9": headed(describing("(4,)"), version=9),
    "endless": b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(64),
    "cut": saved()[:9],
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_refused(cli: Cli, small: Path, name: str) -> None:
    Path("x.npz").write_bytes(ARCHIVES[name])
    with untouched(small.parent):
        assert cli(*COMPARE, "x.npz").refusal() == (
            "--data: cannot read the samples x.npz: no .npz or .npy file of numbers"
        )


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_damaged_header_is_refused(cli: Cli, small: Path, name: str, suffix: str) -> None:
    path = Path(f"x{suffix}")
    path.write_bytes(HEADERS[name] if suffix == ".npy" else archive(x=HEADERS[name]))
    with untouched(small.parent):
        assert "no .npz or .npy file of numbers" in cli(*COMPARE, path).refusal()


def test_what_is_whole_is_read_as_numpy_reads_it() -> None:
    arrays = {"x": X, "y": np.arange(3), "z": np.asfortranarray(X[0]), "s": np.float32(3), "e": X[:0]}
    for save_as in (np.savez, np.savez_compressed):
        save_as("all.npz", **arrays)
        with open_arrays(Path("all.npz")) as found, np.load("all.npz") as expected:
            assert list(found.names) == expected.files
            for name in found.names:
                array = found.read(name)
                assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
                assert found.outline(name).shape == array.shape and np.array_equal(array, expected[name])


def test_only_the_array_that_is_meant_is_read() -> None:
    """An archive may hold a terabyte of others."""
    np.savez("x.npz", pictures=X)
    with zipfile.ZipFile("x.npz", "a") as made:
        made.writestr("labels.npy", saved(np.arange(8)))
    assert len(onnxdecomp.open_samples("x.npz", "in.onnx")) == 8


def test_an_array_larger_than_the_memory_is_not_read(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    Path("x.npz").write_bytes(WHOLE)
    monkeypatch.setattr(ir.reading, "_memory", lambda: X.nbytes - 1)
    assert "is larger than the memory here" in cli(*COMPARE, "x.npz").refusal()
    with pytest.raises(RunError):
        ir.require_memory((2**40, 2**40), 4, "it")
    ir.require_memory((X.nbytes - 1,), 1, "it")


# Devices, pipes and files without end
# ------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither")
@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "pipe", "link to /dev/zero", "/proc/self/maps"])
def test_what_never_ends_or_never_begins_is_not_read(cli: Cli, small: Path, place: str) -> None:
    os.mkfifo("pipe")
    if place.startswith("link"):
        Path("link").symlink_to("/dev/zero")
        place = "link"
    np.savez("x.npz", x=X)
    with untouched(small.parent):
        for words in (
            ("inspect", place),
            ("compare", "in.onnx", place),
            ("rewrite", "in.onnx", "out.onnx", "--plan", place),
            (*COMPARE, place),
            ("rewrite", "in.onnx", "out.onnx", "--rank", "0.25", "--data", "x.npz", "--labels", place),
        ):
            message = cli(*words).refusal()
            assert any(part in message for part in ("pipe", "more bytes", "has no array", "no .npz")), message


@pytest.mark.parametrize(
    ("name", "words", "size"),
    [
        ("m.onnx", ("inspect", "m.onnx"), 2**31),
        ("p.json", ("rewrite", "in.onnx", "out.onnx", "--plan", "p.json"), 2**28 + 1),
        ("l.csv", (*REWRITE, "--data", "x.npz", "--labels", "l.csv"), 2**40),
    ],
)
def test_a_file_larger_than_it_can_be_is_not_read(
    cli: Cli, name: str, words: tuple[str, ...], size: int
) -> None:
    np.savez("x.npz", x=X)
    with Path(name).open("wb") as stream:
        stream.truncate(size)  # without a single block on the disk
    assert "bytes that such a file can have" in cli(*words).refusal()


def test_an_image_of_more_pixels_than_any_is_refused(cli: Cli) -> None:
    save(small_model(w=nets.weight(32, 3, 3, 3), text=COLOURED), Path("rgb.onnx"))
    Path("images").mkdir()
    Image.new("L", (1, 1)).save("images/a.png")
    whole = Path("images/a.png").read_bytes()
    for side in (9500, 20000, 2**31 - 1):  # Pillow warns of the first, and refuses the others
        header = b"IHDR" + struct.pack(">II", side, side) + whole[24:29]
        changed = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
        Path("images/a.png").write_bytes(changed)
        words = ("compare", "rgb.onnx", "rgb.onnx", "--data", "images", "--scale", "1")
        assert "cannot read the image images/a.png" in cli(*words).refusal()


COLOURED = "m (float[1,3,8,8] x) => (float[1,32,8,8] y) { y = Conv <pads=[1,1,1,1]> (x, w) }"


@pytest.mark.parametrize("label", ["9" * 25, "-" + "9" * 25, "1" * 5000, "1.0", "", "٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣"])
def test_a_class_that_no_number_can_be_is_refused(cli: Cli, label: str) -> None:
    Path("set").mkdir()
    for i in range(4):
        np.save(f"set/{i}.npy", X[i : i + 1])
    Path("l.csv").write_text(
        "".join(f"{i}.npy,{label if i == 2 else 1}\n" for i in range(4)), encoding="utf-8"
    )
    words = ("rewrite", "in.onnx", "o.onnx", "--rank", "8", "--data", "set", "--labels", "l.csv")
    assert "row 3 is no file and integer class" in cli(*words).refusal()


def test_samples_without_values_are_refused() -> None:
    with pytest.raises(UsageError, match="has no values in 1,000,000,000 samples"):
        onnxdecomp.open_samples({"x": np.zeros((10**9, 0, 8, 8), np.float32)}, nets.model(OPEN))


OPEN = "m (float[n,c,h,k] x) => (float[n,c,h,k] y) { y = Relu (x) }"


# Samples that say nothing
# ------------------------

POINTWISE = "m (float[n,16,8,8] x) => (float[n,32,8,8] y) { y = Conv (x, w, b) }"
SILENT = {
    "zeros": np.zeros_like(X),
    "minus zeros": -np.zeros_like(X),
    "1e-30": X * np.float32(1e-30),
    "subnormal": X * np.float32(1e-42),
    "the smallest number": np.full_like(X, 1e-45),
}


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.parametrize("words", [REWRITE, SEARCH], ids=["rewrite", "search"])
def test_samples_that_say_nothing_are_refused(
    cli: Cli, small: Path, name: str, words: tuple[str, ...]
) -> None:
    np.savez("x.npz", x=SILENT[name])
    with untouched(small.parent):
        message = cli(*words, "--data", "x.npz").refusal()
    assert message.startswith("--data: on these samples every site's input is zero or always the same")


@pytest.mark.parametrize("value", [1.0, -3e4, 1e-4, 1e15])
def test_an_input_that_is_always_the_same_says_nothing_beside_a_bias(value: float) -> None:
    """Without padding there is one patch: any weight has the right mean."""
    model = nets.model(POINTWISE, w=nets.weight(32, 16, 1, 1), b=nets.signal(32))
    constant = np.full_like(X, value)
    constant *= np.linspace(1, 2, 16, dtype="f").reshape(16, 1, 1)
    with pytest.raises(UsageError, match=r"`data`: .* always the same"):
        onnxdecomp.rewrite(model, 0.25, data={"x": constant})
    varied = constant + X * abs(np.float32(value)) / 10
    assert onnxdecomp.rewrite(model, 0.25, data={"x": varied}).plan.sites


TWO = """m (float[n,16,8,8] x) => (float[n,32,8,8] y) {
  [live] h = Conv <pads=[1,1,1,1]> (x, w, b)
  z = Sub (h, h)
  [dead] i = Conv <pads=[1,1,1,1]> (z, v)
  y = Add (h, i)
}"""


def two() -> onnxdecomp.Result:
    arrays = {"w": nets.weight(32, 16, 3, 3), "v": nets.weight(32, 32, 3, 3, seed=1), "b": nets.signal(32)}
    return onnxdecomp.rewrite(nets.model(TWO, **arrays), 0.25, data={"x": X})


def test_a_site_that_sees_nothing_keeps_its_weight() -> None:
    result = two()
    assert set(result.plan.sites) == {"live"}
    (reason,) = [site.reason for site in result.sites if site.site.name == "dead"]
    assert reason is not None and reason.startswith("it sees nothing on these samples")


def test_a_group_that_sees_nothing_stays_near_its_weight() -> None:
    """The others are fitted all the same, by rewrite and by search."""
    text = "m (float[n,32,8,8] x) => (float[n,32,8,8] y) { y = Conv <pads=[1,1,1,1], group=2> (x, w) }"
    model = nets.model(text, w=nets.weight(32, 16, 3, 3))
    half = np.concatenate([X, 0 * X], axis=1)
    result = onnxdecomp.rewrite(model, 0.5, data={"x": half}, policy=nets.ANYTHING)
    assert len(result.plan.sites) == 1
    session = onnxruntime.InferenceSession(result.model.SerializeToString())
    assert np.isfinite(session.run(None, {"x": np.concatenate([X, X], axis=1)})[0]).all()
    found = onnxdecomp.search(model, onnxdecomp.Goal("macs", 0.7), samples={"x": half}, cost="macs")
    assert found.met
