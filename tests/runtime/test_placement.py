"""Which ranks stay in ONNX Runtime's blocked layout."""

from __future__ import annotations

from pathlib import Path

import nets
import pytest
from conftest import save, small_model

import onnxdecomp
from models import NETWORKS, ModelsError, export, fetch
from onnxdecomp.runtime import placement, vector_extensions


def model(name: str, folder: Path) -> Path:
    """A network exported from PyTorch, or a file of the corpus; skips where it cannot be had."""
    try:
        exported = name in {network.name for network in NETWORKS}
        return export(name, folder / f"{name}.onnx") if exported else fetch(name)
    except ModelsError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["anime_or_not_resnet18", "resnet18"])
def test_every_chain_of_a_resnet18_is_blocked_and_no_reorder_is_added(name: str, tmp_path: Path) -> None:
    resnet18 = model(name, tmp_path)
    result = onnxdecomp.rewrite(resnet18, 0.25)
    result.save(tmp_path / "out.onnx")
    before, after = placement(resnet18), placement(tmp_path / "out.onnx")
    assert len(result.plan.sites) == 20
    added = sum(2 if choice.method == "tucker2" else 1 for choice in result.plan.sites.values())
    assert len(after.blocked) == len(before.blocked) + added
    assert not after.plain
    assert after.reorders <= before.reorders


CHAIN = """
chain (float[1,64,14,14] x) => (float[1,64,14,14] y) {
  h = Conv <pads=[1,1,1,1]> (x, w, b)
  y = Relu (h)
}
"""


def chain_placement(rank: int, folder: Path) -> tuple[int, int, int]:
    """Blocked Convs, plain Convs and Reorders of a 64→64 Conv at one rank on both modes."""
    source = save(small_model(CHAIN, w=nets.weight(64, 64, 3, 3), b=nets.signal(64)), folder / "in.onnx")
    onnxdecomp.rewrite(source, rank).save(folder / "out.onnx")
    found = placement(folder / "out.onnx")
    return len(found.blocked), len(found.plain), found.reorders


def blocks() -> int:
    """Channels in one block of ONNX Runtime's kernels here: 16 with AVX-512, else 8 or 16 by the machine."""
    extensions = vector_extensions()
    return 16 if "avx512f" in extensions else 8 if "avx2" in extensions else 0


@pytest.mark.parametrize("rank", [16, 32])
def test_ranks_of_whole_blocks_stay_blocked(rank: int, tmp_path: Path) -> None:
    assert chain_placement(rank, tmp_path) == (3, 0, 2)  # into the layout and out of it


def test_rank_30_falls_out_of_the_layout(tmp_path: Path) -> None:
    """No multiple of four: what alignment is for."""
    blocked, plain, reorders = chain_placement(30, tmp_path)
    assert plain > 0
    assert blocked + plain == 3
    assert reorders >= 2


def test_rank_8_stays_blocked_where_blocks_have_8_channels(tmp_path: Path) -> None:
    """Where they have 16, a Conv of 8 input channels reads the plain layout: a Reorder in front of it."""
    if blocks() not in (8, 16):
        pytest.skip("this CPU's block is not known to the test")
    _, plain, reorders = chain_placement(8, tmp_path)
    assert (plain == 0 and reorders == 2) is (blocks() == 8)


def test_placement_counts_are_those_of_the_rewritten_model_alone(tmp_path: Path) -> None:
    source = save(small_model(CHAIN, w=nets.weight(64, 64, 3, 3), b=nets.signal(64)), tmp_path / "in.onnx")
    found = placement(source)
    assert (len(found.blocked), len(found.plain), found.reorders) == (1, 0, 2)
