"""What a measurement was made on: without it a figure means nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onnxdecomp.runtime.session import onnxruntime

_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_EXTENSIONS = {"avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", "asimd", "sve"}
_PACKAGES = ("onnx", "tensorly", "numpy", "onnxdecomp")


def cpu_name() -> str:
    """The processor's model name, as far as the system tells."""
    if _CPUINFO.exists():
        found = re.search(r"model name\s*:\s*(.+)", _CPUINFO.read_text())
        if found:
            return found.group(1).strip()
    if platform.system() == "Darwin":
        return _asked("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def vector_extensions() -> list[str]:
    """The vector instruction sets ONNX Runtime chooses its kernels by, as far as the system tells."""
    flags = set(_CPUINFO.read_text().split()) if _CPUINFO.exists() else set()
    return sorted(flags & _EXTENSIONS)


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of every NVIDIA GPU that nvidia-smi knows; empty without one."""
    told = _asked("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    rows = [line.split(", ") for line in told.splitlines() if line.count(", ") == 2]
    return [dict(zip(("name", "driver", "memory"), row, strict=True)) for row in rows]


def _asked(*command: str) -> str:
    """What a system's tool prints; empty where there is none or it knows nothing."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def environment() -> dict[str, Any]:
    """The record that stands beside every result: JSON values, None where the system does not tell.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    ort = onnxruntime()
    return {
        "cpu": cpu_name(),
        "isa": vector_extensions(),
        "cores": os.cpu_count(),
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.exists() else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpus": gpus(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "onnxruntime_build": ort.get_build_info(),
        "onnxruntime_providers": ort.get_available_providers(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
