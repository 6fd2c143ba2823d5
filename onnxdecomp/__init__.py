"""Tensor decomposition of trained CNNs: ONNX in, ONNX out.

>>> import onnxdecomp
>>> result = onnxdecomp.rewrite("in.onnx", 0.25)
>>> result.save("out.onnx")
"""

from onnxdecomp.choose import Policy
from onnxdecomp.compare import Fidelity, compare
from onnxdecomp.errors import (
    CheckError,
    GoalError,
    MissingExtraError,
    ModelError,
    NothingSelectedError,
    OnnxdecompError,
    OutputError,
    RunError,
    UsageError,
)
from onnxdecomp.labels import read_labels
from onnxdecomp.plan import Choice, Plan
from onnxdecomp.preprocessing import Preprocessing
from onnxdecomp.ranks import Ranks
from onnxdecomp.report import Result, SiteReport, Totals
from onnxdecomp.rewrite import rewrite
from onnxdecomp.samples import Samples, open_samples
from onnxdecomp.sites import Site, find_sites

__version__ = "0.1.0"

__all__ = [
    "CheckError",
    "Choice",
    "Fidelity",
    "GoalError",
    "MissingExtraError",
    "ModelError",
    "NothingSelectedError",
    "OnnxdecompError",
    "OutputError",
    "Plan",
    "Policy",
    "Preprocessing",
    "Ranks",
    "Result",
    "RunError",
    "Samples",
    "Site",
    "SiteReport",
    "Totals",
    "UsageError",
    "compare",
    "find_sites",
    "open_samples",
    "read_labels",
    "rewrite",
]
