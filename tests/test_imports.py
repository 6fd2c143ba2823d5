"""What is slow to load is loaded only by what needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = {"tensorly", "scipy", "onnx_graphsurgeon", "onnxruntime", "torch", "joblib"}


@pytest.mark.parametrize(
    "statement",
    [
        "from onnxdecomp.factors import METHODS, Ranks, Chain, layout, Spectrum, Whitening",
        "from onnxdecomp.planning import Policy, fitting_methods, Plan, parse_rank, chain_macs",
        "from onnxdecomp.planning import choose, find_units, front",
    ],
)
def test_values_load_nothing_slow(statement: str) -> None:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert SLOW.isdisjoint(done.stdout.split())
