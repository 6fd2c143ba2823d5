"""Samples as batches: what is held out, that all are seen, and what becomes of images."""

from __future__ import annotations

import itertools

import nets
import numpy as np
import pytest

import onnxdecomp
from onnxdecomp.tuning.feeding import endless, part_samples, varied

FLAT = nets.model("m (float[N,2] x) => (float[N,2] y) { y = Relu (x) }")


def numbered(count: int) -> onnxdecomp.Samples:
    return onnxdecomp.open_samples(np.arange(2 * count, dtype=np.float32).reshape(count, 2), FLAT)


@pytest.mark.parametrize(("count", "held"), [(2, 1), (20, 10), (40, 16), (300, 30), (6000, 512)])
def test_a_tenth_is_held_out_at_least_sixteen_and_never_more_than_half(count: int, held: int) -> None:
    fitted, held_out = part_samples(numbered(count), seed=0)
    assert (len(fitted), len(held_out)) == (count - held, held)
    assert not set(fitted.indices) & set(held_out.indices)


def test_a_model_that_takes_several_at_a_time_gets_whole_batches() -> None:
    four = nets.model("m (float[4,2] x) => (float[4,2] y) { y = Relu (x) }")
    samples = onnxdecomp.open_samples(np.zeros((40, 2), np.float32), four)
    fitted, held_out = part_samples(samples, seed=0)
    assert (len(fitted), len(held_out)) == (24, 16)
    with pytest.raises(onnxdecomp.UsageError, match="a batch of 4 samples"):
        part_samples(samples[:4], seed=0)


def test_all_samples_are_seen_before_any_comes_again() -> None:
    batches = endless(numbered(10), 4, 0, augment=False)
    for _ in range(2):
        seen = np.concatenate([each["x"][:, 0] for each in itertools.islice(batches, 3)])
        assert sorted(seen) == list(range(0, 20, 2))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_images_are_flipped_and_moved_each_by_itself(layout: str) -> None:
    images = nets.signal(12, 3, 16, 24)
    given = images if layout == "NCHW" else images.transpose(0, 2, 3, 1)
    found = varied({"x": given}, np.random.default_rng(0))["x"]
    made = found if layout == "NCHW" else found.transpose(0, 3, 1, 2)
    assert made.shape == images.shape
    places = set()
    for image, changed in zip(images, made, strict=True):
        wide = np.pad(image, [(0, 0), (2, 2), (2, 2)], mode="reflect")
        for top, left, step in itertools.product(range(5), range(5), (1, -1)):
            if np.array_equal(wide[:, top : top + 16, left : left + 24][:, :, ::step], changed):
                places.add((top, left, step))
    assert len(places) >= 10  # each was found, hardly two at one place


def test_what_holds_no_images_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    for feeds in (
        {"x": nets.signal(4, 3, 16)},
        {"x": nets.signal(4, 8, 16, 16)},
        {"x": np.ones((4, 3, 16, 16), np.int64)},
        {"x": nets.signal(4, 3, 16, 16), "size": np.ones(2, np.float32)},
    ):
        assert varied(feeds, rng) is feeds
