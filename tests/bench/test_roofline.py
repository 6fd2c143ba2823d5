"""What a Conv costs, counted by hand, and costs fitted to times that are known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bench.roofline import (
    TERMS,
    Conv,
    Machine,
    Roofline,
    chain,
    fit,
    kernel_class,
    node_work,
    padded_macs,
    reorders,
    tiles,
    work,
)

AVX2, AVX512 = Machine(block=8), Machine(block=16, l1=48 * 1024)
LAYER = Conv(inputs=128, outputs=128, kernel=3, size=28)


def core(rank: int) -> Conv:
    return chain(LAYER, rank)[1]


@pytest.mark.parametrize(("machine", "rank"), [(AVX2, 24), (AVX512, 32)])
def test_a_rank_of_20_costs_what_whole_blocks_cost(machine: Machine, rank: int) -> None:
    assert padded_macs(core(20), machine.block) == rank * rank * 9 * 28 * 28
    assert work(chain(LAYER, 20), machine) == work(chain(LAYER, rank), machine)


def test_a_layer_of_whole_blocks_has_no_padding() -> None:
    assert padded_macs(LAYER, 16) == LAYER.macs == 128 * 128 * 9 * 28 * 28


def test_the_direct_kernel_does_not_pad_its_input_channels() -> None:
    assert padded_macs(core(12), 16) == 12 * 16 * 9 * 28 * 28
    assert padded_macs(core(12), 8) == 16 * 16 * 9 * 28 * 28


def test_the_kernel_goes_by_the_input_channels() -> None:
    kinds = [kernel_class(core(rank), 16) for rank in (8, 12, 16, 20, 30, 32)]
    assert kinds == ["direct", "direct", "spatial", "spatial", "gemm", "spatial"]
    assert kernel_class(chain(LAYER, 30)[0], 16) == "pointwise"


@pytest.mark.parametrize(("rank", "count"), [(8, 4), (16, 2), (30, 2), (32, 2)])
def test_conversions_of_the_layout(rank: int, count: int) -> None:
    """As ONNX Runtime 1.31.1 places them on AVX-512."""
    assert len(reorders(chain(LAYER, rank), 16)) == count


@pytest.mark.parametrize(
    ("positions", "block", "widths"),
    [(28, 16, [6, 6, 6, 6, 3, 1]), (5, 16, [3, 2]), (28, 8, [3] * 9 + [1]), (5, 8, [3, 2])],
)
def test_a_row_is_cut_into_tiles(positions: int, block: int, widths: list[int]) -> None:
    assert tiles(positions, block) == widths


def test_the_work_of_a_3x3_kernel_by_hand() -> None:
    """One block in and out on a 7×7 map: a row is tiles of 1 | 3, 2 | 1; the outer two miss one tap of three.

    The first and the last row miss one row of taps: 7·3 − 2 = 19 rows of taps.
    """
    counts = node_work(Conv(inputs=16, outputs=16, kernel=3, size=7), AVX512)
    assert counts == {
        "spatial_fma": 16 * 19 * (2 + 5 * 3 + 2),
        "spatial_step": 16 * 19 * (2 + 3 + 3 + 2),
        "tile": 7 * 4,
        "weight_bytes": 4 * 16 * 16 * 9,
        "node": 1,
    }


def test_the_work_of_a_1x1_kernel_by_hand() -> None:
    """Five output blocks are handled as four and one; 256 input channels take two passes."""
    counts = node_work(Conv(inputs=256, outputs=80, kernel=1, size=7), AVX512)
    assert counts == {
        "pointwise_fma": 256 * 5 * 49,
        "pointwise_step": 256 * 2 * 9,  # 49 = 8·6 + 1
        "tile": 2 * 5 * 9,
        "weight_bytes": 4 * 256 * 80,
        "node": 1,
    }


def test_weights_are_read_again_where_the_first_level_cache_is_too_small() -> None:
    """Of a 5×5 kernel, four blocks and one block of inputs: 4·16·16·25 floats, 100 KiB; one block: 25 KiB."""
    wide, narrow = (Conv(inputs=64, outputs=outputs, kernel=5, size=14) for outputs in (64, 16))
    assert node_work(wide, AVX512)["reread_bytes"] == 4 * 64 * 64 * 25 * (14 * 5 - 6) / 5
    assert "reread_bytes" not in node_work(narrow, AVX512)


def test_predictions_add_up_over_nodes() -> None:
    costs = {term: 10.0 ** -(i + 3) for i, term in enumerate(TERMS)}
    roofline = Roofline(machine=AVX512, costs=costs)
    convs = chain(LAYER, 32)
    moved = reorders(convs, 16)
    assert moved == [128 * 28 * 28] * 2
    nodes = sum(roofline.seconds_of(node_work(conv, AVX512)) for conv in convs)
    conversions = 2 * costs["node"] + sum(moved) * costs["reordered"]
    assert roofline.seconds(convs) == pytest.approx(costs["run"] + nodes + conversions)


@pytest.mark.parametrize("machine", [AVX2, AVX512])
def test_the_fit_recovers_the_costs_that_made_the_times(machine: Machine) -> None:
    """From exact times those costs; from times off by up to 1 %, predictions of other shapes within 3 %."""
    order = (5e-6, 2e-6, 1e-10, 5e-10, 1e-10, 4e-10, 1e-9, 1.5e-10, 2e-10, 1e-11, 9e-12, 1e-10)
    truth = Roofline(machine=machine, costs=dict(zip(TERMS, order, strict=True)))
    models = [
        convs
        for channels, size, kernel in product((32, 64, 96, 192), (7, 14, 20), (1, 3, 5))
        for layer in [Conv(inputs=channels, outputs=channels, kernel=kernel, size=size)]
        for convs in ((layer,), *(chain(layer, rank) for rank in (4, 8, 20, 30, 48)))
    ]
    times = np.array([truth.seconds(convs) for convs in models])
    exact = fit(models, times.tolist(), machine)
    present = set().union(*(work(convs, machine) for convs in models))
    assert set(TERMS) - present == ({"reread_bytes"} if machine is AVX2 else set())
    assert {term: exact.costs[term] for term in present} == pytest.approx(
        {term: truth.costs[term] for term in present}, rel=1e-4
    )
    noise = np.random.default_rng(0).uniform(0.99, 1.01, len(times))
    found = fit(models, (times * noise).tolist(), machine)
    for other in (LAYER,), chain(LAYER, 32), chain(LAYER, 62):
        assert found.seconds(other) == pytest.approx(truth.seconds(other), rel=0.03)
    assert min(found.costs.values()) >= 0
