"""Execution providers of ONNX Runtime, under the short names of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import onnxruntime


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One execution provider.

    Attributes:
        short: its name on the command line.
        name: its name in ONNX Runtime.
        package: what brings it.
        gpu: whether it computes on a GPU, where half precision pays.
    """

    short: str
    name: str
    package: str
    gpu: bool = False


PROVIDERS = {
    each.short: each
    for each in (
        Provider(short="cpu", name="CPUExecutionProvider", package="onnxruntime"),
        Provider(short="cuda", name="CUDAExecutionProvider", package="onnxruntime-gpu", gpu=True),
        Provider(
            short="tensorrt",
            name="TensorrtExecutionProvider",
            package="onnxruntime-gpu and NVIDIA's TensorRT",
            gpu=True,
        ),
        Provider(short="openvino", name="OpenVINOExecutionProvider", package="onnxruntime-openvino"),
        Provider(short="coreml", name="CoreMLExecutionProvider", package="onnxruntime on macOS", gpu=True),
        Provider(
            short="dml", name="DmlExecutionProvider", package="onnxruntime-directml on Windows", gpu=True
        ),
    )
}


def find_providers(shorts: Sequence[str]) -> tuple[list[Provider], list[str]]:
    """Those of the named providers that this build of ONNX Runtime has, and a line on each that it lacks.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        UsageError: a name is none of these, or no provider remains.
    """
    ort = onnxruntime()
    unknown = [short for short in shorts if short not in PROVIDERS]
    if unknown:
        raise UsageError(f"`providers` {unknown[0] or 'of no name'}: there are {', '.join(PROVIDERS)}")
    present = ort.get_available_providers()
    wanted = [PROVIDERS[short] for short in dict.fromkeys(shorts)]
    missing = [
        f"this ONNX Runtime ({ort.__version__}) has no {each.name}: {each.short} needs {each.package}"
        for each in wanted
        if each.name not in present
    ]
    usable = [each for each in wanted if each.name in present]
    if not usable:
        raise UsageError("; ".join(missing) or "`providers` is empty: name one or more")
    return usable, missing
