"""What tables say of a site's kernel and channels."""

from __future__ import annotations

import nets
import pytest

from onnxdecomp import find_sites
from onnxdecomp.show.sites import geometry

ROWS = {
    "y = Conv <group=2> (x, w)": ((6, 2, 3, 3), ("3×3", "4→6 /2")),
    "y = ConvTranspose <group=2> (x, w)": ((4, 3, 3, 1), ("3×1 transposed", "4→6 /2")),
    "y = MatMul (x, w)": ((8, 5), ("MatMul", "8→5")),
}


@pytest.mark.parametrize("node", ROWS)
def test_a_sites_kernel_and_channels(node: str) -> None:
    shape, row = ROWS[node]
    model = nets.model(f"m (float[1,4,8,8] x) => (float[?,?,?,?] y) {{ {node} }}", w=nets.weight(*shape))
    (site,) = find_sites(model, linear=True)
    assert geometry(site) == row
