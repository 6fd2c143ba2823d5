"""PyTorch networks with seeded random weights, written as ONNX files."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import UsageError
from models.files import write_atomically
from models.zoo import network_of

if TYPE_CHECKING:
    from torch import nn

# What PyTorch's TorchScript exporter can write, in every PyTorch from 2.6 on.
OPSETS = range(9, 21)


def build(name: str, seed: int = 0) -> nn.Module:
    """The network `name` in evaluation mode, its weights and BatchNorm statistics drawn from `seed`.

    Raises UsageError for an unknown name or a seed out of range, and if PyTorch is not installed.
    """
    network = network_of(name)
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed} is not one of 0 to 2^63 - 1")
    _require_torch()
    import torch

    from models.nets.weights import initialise

    # On "meta" nothing is allocated or drawn: PyTorch's own initialisation would use its global generator.
    with torch.device("meta"):
        net: nn.Module = getattr(importlib.import_module(f"models.nets.{network.family}"), name)()
    net.to_empty(device="cpu")
    initialise(net, seed)
    return net.eval()


def export(
    name: str,
    path: Path,
    *,
    seed: int = 0,
    opset: int = 17,
    dynamic_batch: bool = False,
    keep_bn: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Path:
    """Write the network `name`, with weights drawn from `seed`, to the ONNX file `path`; returns `path`.

    The file has one input `input` and one output `output`; the input has the network's own shape, or `shape`.
    With `dynamic_batch` their first dimension is the symbol `batch`. BatchNormalization is folded into the
    Convs unless `keep_bn` is set. The same arguments and the same PyTorch give the same bytes. Raises
    UsageError for an unknown name, a seed or opset out of range, and if PyTorch is not installed; ModelsError
    if `path` cannot be written.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not one of {OPSETS.start} to {OPSETS.stop - 1}")
    net = build(name, seed)
    data = _to_onnx(
        net, shape or network_of(name).shape, opset=opset, dynamic_batch=dynamic_batch, keep_bn=keep_bn
    )
    write_atomically(path, data)
    return path


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            'exporting needs PyTorch, which is not installed: pip install "onnxdecomp[torch]"'
        ) from error


def _to_onnx(
    net: nn.Module, shape: tuple[int, ...], *, opset: int, dynamic_batch: bool, keep_bn: bool
) -> bytes:
    import torch
    from torch.onnx import TrainingMode

    with tempfile.TemporaryDirectory(prefix="onnxdecomp-") as scratch, _legacy_exporter_unannounced():
        path = Path(scratch) / "model.onnx"
        torch.onnx.export(
            net,
            (torch.zeros(shape),),
            path,
            # The newer exporter needs one more package, onnxscript.
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}} if dynamic_batch else None,
            # EVAL folds BatchNorm into Conv before the trace is written; PRESERVE takes the trace as it is.
            training=TrainingMode.PRESERVE if keep_bn else TrainingMode.EVAL,
            do_constant_folding=not keep_bn,
        )
        return path.read_bytes()


@contextmanager
def _legacy_exporter_unannounced() -> Iterator[None]:
    """Silence what PyTorch (from 2.9 on) says of its TorchScript exporter at every call, and nothing else."""
    with warnings.catch_warnings():
        for message in (
            "You are using the legacy TorchScript-based ONNX export",
            "The feature will be removed",
        ):
            warnings.filterwarnings("ignore", message=message, category=DeprecationWarning)
        yield
