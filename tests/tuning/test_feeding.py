"""Samples as batches: what is held out, that all are seen, and what becomes of images."""

from __future__ import annotations

import nets
import numpy as np
import pytest
from scipy import ndimage

pytest.importorskip("torch")

import onnxdecomp
from onnxdecomp.tuning.augmenting import motion, varied
from onnxdecomp.tuning.feeding import Feeding, Portion, part_samples

FLAT = nets.model("m (float[N,2] x) => (float[N,2] y) { y = Relu (x) }")


def numbered(count: int) -> onnxdecomp.Samples:
    return onnxdecomp.open_samples(np.arange(2 * count, dtype=np.float32).reshape(count, 2), FLAT)


def feeding(count: int, batch: int, *, seed: int = 0, labels: bool = False) -> Feeding:
    classes = np.arange(count) if labels else None
    return Feeding(samples=numbered(count), labels=classes, batch=batch, seed=seed, augment=False)


def numbers(portions: list[Portion]) -> list[int]:
    return [int(value) // 2 for portion in portions for value in portion.feeds["x"][:, 0]]


@pytest.mark.parametrize(("count", "held"), [(2, 1), (20, 10), (40, 16), (300, 30), (6000, 512)])
def test_a_tenth_is_held_out_at_least_sixteen_and_never_more_than_half(count: int, held: int) -> None:
    fitted, held_out = part_samples(numbered(count), seed=0)
    assert (len(fitted), len(held_out)) == (count - held, held)
    assert sorted([*fitted, *held_out]) == list(range(count))


def test_those_held_out_are_new_to_the_fit_as_far_as_that_goes() -> None:
    samples = numbered(60)
    sets = onnxdecomp.SampleSets.draw(samples, count=40)
    # Dealt anew, by the command that tunes alone.
    assert set(part_samples(samples, seed=0)[1]) <= set(sets.held_out.indices)
    seen = range(3, 60, 2)
    for seed in range(5):
        assert not set(part_samples(samples, seed, seen)[1]) & set(seen)
        assert set(range(50, 60)) <= set(part_samples(samples, seed, range(50))[1])


def test_a_model_that_takes_several_at_a_time_gets_whole_batches() -> None:
    four = nets.model("m (float[4,2] x) => (float[4,2] y) { y = Relu (x) }")
    samples = onnxdecomp.open_samples(np.zeros((40, 2), np.float32), four)
    fitted, held_out = part_samples(samples, seed=0)
    assert (len(fitted), len(held_out)) == (24, 16)
    with pytest.raises(onnxdecomp.UsageError, match="a batch of 4 samples"):
        part_samples(samples[:4], seed=0)
    fed = Feeding(samples=samples, batch=10, seed=0, augment=False)
    assert [portion.rows for portion in fed.step(3, parts=2, most=100)] == [4, 4]


def test_all_samples_are_taken_before_any_comes_again() -> None:
    fed = feeding(10, 4)
    seen = [number for step in range(5) for number in numbers(fed.step(step, 1, 100))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert numbers(feeding(3, 8).step(0, 1, 100)).count(0) in (2, 3)


def test_a_step_is_the_same_however_it_is_dealt() -> None:
    """Whoever takes which part, and whatever was asked for before."""
    whole = feeding(50, 12, labels=True)
    wanted = numbers(whole.step(7, 1, 100))
    for parts, most in ((2, 100), (3, 100), (5, 100), (20, 100), (2, 5), (1, 1)):
        dealt = [whole.step(7, parts, most, slice(part, part + 1)) for part in range(parts)]
        assert [number for part in dealt for number in numbers(part)] == wanted
        assert all(portion.rows <= most for part in dealt for portion in part)
    assert [int(each) for portion in whole.step(7, 3, 5) for each in portion.labels] == wanted
    assert numbers(feeding(50, 12, seed=1).step(7, 1, 100)) != wanted


def test_images_are_varied_in_the_same_way_however_they_are_dealt() -> None:
    proto = nets.model("m (float[N,3,16,16] x) => (float[N,3,16,16] y) { y = Relu (x) }")
    samples = onnxdecomp.open_samples(nets.signal(20, 3, 16, 16), proto)
    fed = Feeding(samples=samples, batch=9, seed=4, augment=True)
    one, three = (
        np.concatenate([portion.feeds["x"] for portion in fed.step(2, parts, 100)]) for parts in (1, 3)
    )
    np.testing.assert_array_equal(one, three)
    assert not np.array_equal(one, np.concatenate([p.feeds["x"] for p in fed.step(3, 1, 100)]))


# Images
# ------


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(count)]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_images_are_varied_each_by_itself(layout: str, dtype: type) -> None:
    """Taken by SciPy from the same places, they are the same."""
    images = nets.signal(6, 3, 16, 24).astype(dtype)
    given = images if layout == "NCHW" else images.transpose(0, 2, 3, 1)
    found = varied({"x": given}, rngs(6))["x"]
    assert found.dtype == dtype
    made = found if layout == "NCHW" else found.transpose(0, 3, 1, 2)
    rows, columns = (2 * np.arange(16) + 1) / 16 - 1, (2 * np.arange(24) + 1) / 24 - 1
    down, across = np.meshgrid(rows, columns, indexing="ij")
    for image, changed, rng in zip(images, made, rngs(6), strict=True):
        x, y = np.tensordot(motion(rng, 16, 24), np.stack([across, down, np.ones_like(down)]), 1)
        places = [((y + 1) * 16 - 1) / 2, ((x + 1) * 24 - 1) / 2]
        for channel, new in zip(image.astype(np.float64), changed, strict=True):
            wanted = ndimage.map_coordinates(channel, places, order=1, mode="reflect")
            np.testing.assert_allclose(new, wanted, atol=2e-3 if dtype == np.float16 else 1e-4)


def test_a_motion_turns_scales_moves_and_flips_and_does_not_shear() -> None:
    height, width = 16, 32
    found = np.stack([motion(np.random.default_rng(i), height, width) for i in range(1000)])
    # In pixels instead of halves of each side.
    pixels = found[:, :, :2] * [[1, width / height], [height / width, 1]]
    sizes = np.sqrt(np.abs(np.linalg.det(pixels)))
    square = np.einsum("nij,nkj->nik", pixels, pixels) / sizes[:, None, None] ** 2
    np.testing.assert_allclose(square, np.broadcast_to(np.eye(2), (1000, 2, 2)), atol=1e-5)
    assert 0.7 <= sizes.min() < 0.72 and 1.13 < sizes.max() <= 1.15
    assert 400 < (np.linalg.det(pixels) < 0).sum() < 600
    turns = np.arctan2(-pixels[:, 0, 1], pixels[:, 1, 1])
    assert 0.24 < np.abs(turns).max() <= 0.2501 and np.abs(turns.mean()) < 0.03
    sharp = turns == 0
    assert 400 < sharp.sum() < 600 and set(sizes[sharp]) == {1}
    ways = found[sharp][:, :, 2] * [width / 2, height / 2]
    np.testing.assert_allclose(ways, np.round(ways), atol=1e-5)
    np.testing.assert_allclose(np.abs(ways).max(axis=0), [4, 2], atol=1e-5)
    assert 0.28 < np.abs(found[~sharp][:, :, 2]).max() <= 0.3


def test_what_holds_no_images_stays_as_it_is() -> None:
    for feeds in (
        {"x": nets.signal(4, 3, 16)},
        {"x": nets.signal(4, 8, 16, 16)},
        {"x": np.ones((4, 3, 16, 16), np.int64)},
        {"x": nets.signal(4, 3, 16, 16), "size": np.ones(2, np.float32)},
    ):
        assert varied(feeds, rngs(4)) is feeds
