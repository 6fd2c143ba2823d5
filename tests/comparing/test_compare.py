"""How far two models are apart: the figures against NumPy in float64, on samples and on random inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save, small_model
from onnx import numpy_helper

from onnxdecomp import CheckError, Fidelity, compare, rewrite
from onnxdecomp.runtime import random_feeds

SHAPES = [(4, 10), (4, 7, 10), (2, 5, 3, 3), (2, 5, 2, 3, 3), (2, 1, 4, 4), (3, 1), (6,), ()]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def constant(name: str, **outputs: Any) -> Path:
    """A model that ignores its input and puts out the arrays given."""
    arrays = {f"{key}_value": np.asarray(value) for key, value in outputs.items()}
    body = " ".join(f"{key} = Identity ({key}_value)" for key in outputs)
    kinds = {"f": "float", "d": "double", "i": "int32", "?": "bool", "O": "string", "e": "float16"}
    declared = ", ".join(
        f"{kinds[np.asarray(value).dtype.char]}[{','.join(map(str, np.shape(value)))}] {key}"
        for key, value in outputs.items()
    )
    model = nets.model(f"constant (float[N] x) => ({declared}) {{ {body} }}", **arrays)
    return save(model, Path(f"{name}.onnx"))


def fidelity(a: Any, b: Any) -> Fidelity:
    (found,) = compare(constant("a", y=a), constant("b", y=b))
    assert found.name == "y"
    return found


def noisy(*shape: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    a = nets.signal(*shape, seed=1)
    return a.astype(dtype), (a + 1.5 * nets.signal(*shape, seed=2)).astype(dtype)


# The figures
# -----------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_distances_are_those_of_numpy(shape: tuple[int, ...], dtype: Any) -> None:
    a, b = noisy(*shape, dtype=dtype)
    found = fidelity(a, b)
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    assert found.relative_l2 == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-12)
    assert found.max_abs == np.abs(x - y).max()
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
    assert found.new_nonfinite == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_top1_agreement_is_that_of_the_class_axis(shape: tuple[int, ...]) -> None:
    """Axis 1 of pictures, the last axis of vectors and sequences; without classes there is none."""
    a, b = noisy(*shape)
    axis = {2: 1, 3: 2, 4: 1, 5: 1}.get(len(shape))
    if axis is None or shape[axis] == 1:
        assert fidelity(a, b).top1_agreement is None
        return
    agreement = np.mean(a.argmax(axis) == b.argmax(axis))
    assert 0 < agreement < 1, "the noise must change some answers"
    assert fidelity(a, b).top1_agreement == agreement


def test_figures_that_a_person_can_check() -> None:
    found = fidelity(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 3.0]]))
    assert (found.relative_l2, found.max_abs, found.top1_agreement) == (1.0, 4.0, 0.0)
    assert found.cosine == pytest.approx(9 / (5 * 18**0.5), rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "relative_l2", "cosine"),
    [([0, 0], [0, 0], 0.0, None), ([0, 0], [0, 2], None, None), ([3, 4], [0, 0], 1.0, None)],
)
def test_zero_outputs_have_no_direction(
    a: list[int], b: list[int], relative_l2: float | None, cosine: float | None
) -> None:
    found = fidelity(np.array(a, np.float32), np.array(b, np.float32))
    assert (found.relative_l2, found.cosine) == (relative_l2, cosine)
    assert found.max_abs == np.abs(np.subtract(a, b)).max()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.array([1, 5, 2], np.int32), np.array([1, 3, 2], np.int32)),
        (np.array([True, False]), np.array([True, True])),
    ],
)
def test_whole_numbers_and_truth_values_count_as_numbers(a: np.ndarray, b: np.ndarray) -> None:
    x, y = a.astype(float), b.astype(float)
    found = fidelity(a, b)
    assert found.max_abs == np.abs(x - y).max()
    assert found.relative_l2 == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x))


def test_texts_have_no_distance() -> None:
    found = fidelity(np.array(["cat"], object), np.array(["dog"], object))
    assert (found.relative_l2, found.max_abs, found.cosine, found.top1_agreement) == (None,) * 4


def test_nan_of_the_reference_is_left_out() -> None:
    a, b = noisy(4, 10)
    a[1, 2] = b[1, 2] = np.nan
    a[0, 3] = np.inf
    found, known = fidelity(a, b), np.isfinite(a)
    assert found.relative_l2 == pytest.approx(np.linalg.norm((a - b)[known]) / np.linalg.norm(a[known]))
    assert found.new_nonfinite == 0


@pytest.mark.parametrize("b", [np.full((2, 4), np.nan, "f"), np.ones((2, 4), "f")])
def test_where_nothing_can_be_compared_nothing_is_claimed(b: np.ndarray) -> None:
    """An output that is all NaN, or empty, is no proof that two models agree."""
    for found in (fidelity(np.full((2, 4), np.nan, "f"), b), fidelity(b[:0], b[:0])):
        assert (found.relative_l2, found.max_abs, found.cosine) == (None, None, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_new_nan_or_infinity_is_no_agreement(cli: Cli, bad: float, everywhere: bool) -> None:
    """It is counted, no distance belittles it, and whoever reads the table sees it."""
    a, b = noisy(4, 10)
    b[(..., slice(None) if everywhere else slice(1))] = bad
    found = fidelity(a, b)
    assert found.new_nonfinite == (40 if everywhere else 4)
    assert found.relative_l2 is None or not np.isfinite(found.relative_l2)
    assert found.max_abs is None or not np.isfinite(found.max_abs)
    outcome = cli("compare", "a.onnx", "b.onnx")
    assert "NaN or Inf" in outcome.out + outcome.err


def test_every_output_has_its_figures_in_the_order_of_the_reference() -> None:
    a, b = noisy(2, 4)
    found = compare(constant("a", second=a, first=b), constant("b", first=b, second=b))
    assert [each.name for each in found] == ["second", "first"]
    assert found[0].relative_l2 == pytest.approx(float(np.linalg.norm(a - b) / np.linalg.norm(a)))
    assert found[1].relative_l2 == 0 and found[1].cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"z": np.zeros((2, 4), "f")}, "output 'y' is missing from the second model"),
        ({"y": np.zeros((4, 2), "f")}, "output 'y' changed from float32[2, 4] to float32[4, 2]"),
        ({"y": np.zeros((2, 4), "d")}, "output 'y' changed from float32[2, 4] to float64[2, 4]"),
    ],
    ids=["renamed", "reshaped", "retyped"],
)
def test_another_output_is_a_failed_check(cli: Cli, other: dict[str, np.ndarray], says: str) -> None:
    a, b = constant("a", y=np.zeros((2, 4), "f")), constant("b", **other)
    assert cli("compare", a, b, "--json", "report.json").refusal(code=1) == says
    assert not Path("report.json").exists()
    with pytest.raises(CheckError):
        compare(a, b)


def test_models_with_other_inputs_are_refused(cli: Cli, small: Path) -> None:
    renamed = small_model()
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "pixels"
    save(renamed, Path("b.onnx"))
    assert "pixels" in cli("compare", small, "b.onnx").refusal()


# Samples
# -------


def test_a_report_on_samples_is_that_of_numpy_over_all_batches(cli: Cli, small: Path) -> None:
    """Of 70 samples in batches of one: sums over batches, not means of batches."""
    rewrite(small, 0.25).save("b.onnx")
    x = nets.signal(70, 16, 8, 8) * np.linspace(0.1, 5, 70, dtype=np.float32).reshape(-1, 1, 1, 1)
    np.savez("samples.npz", x=x)
    outcome = cli("compare", small, "b.onnx", "--data", "samples.npz", "--json", "report.json")
    assert outcome.code == 0 and outcome.out.startswith(
        "on the samples in samples.npz, the outputs differ by"
    )
    a, b = (
        np.concatenate([nets.run(onnx.load(path), x=x[i : i + 1])["y"] for i in range(70)]).astype(np.float64)
        for path in (small, "b.onnx")
    )
    report = json.loads(Path("report.json").read_text())
    assert report["inputs"] == "samples.npz"
    (found,) = report["outputs"]
    assert found["relative_l2"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-6)
    assert found["max_abs"] == pytest.approx(np.abs(a - b).max(), rel=1e-5)
    assert found["top1_agreement"] == pytest.approx(np.mean(a.argmax(1) == b.argmax(1)), abs=1e-3)


# Random inputs
# -------------


def test_random_inputs_have_their_types_and_are_the_same_every_time() -> None:
    text = (
        "kinds (float[N,3] f, double[2] d, float16[2] h, uint8[50] u, int64[2] i, bool[2] t)"
        "=> (float[N,3] y) { y = Relu (f) }"
    )
    first, again, other = (random_feeds(nets.model(text), {}, seed) for seed in (0, 0, 1))
    kinds = {name: (array.dtype.name, array.shape) for name, array in first.items()}
    assert kinds == {
        "f": ("float32", (1, 3)),
        "d": ("float64", (2,)),
        "h": ("float16", (2,)),
        "u": ("uint8", (50,)),
        "i": ("int64", (2,)),
        "t": ("bool", (2,)),
    }
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["f"] != other["f"]).any() and first["u"].max() > 99
    assert (first["i"] == 1).all() and not first["t"].any()


def test_weights_that_are_listed_as_inputs_are_not_made_up() -> None:
    model = small_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [32, 16, 3, 3]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, "f"), "spare"))
    assert set(random_feeds(model, {})) == {"x"}
