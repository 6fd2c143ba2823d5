"""What tuning makes small: how far a program is from the teacher, and, with labels, from the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.ir import Array
from onnxdecomp.sampling import Labels

# How much the classes count beside the teacher.
_TRUTH = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss, and what it is measured by.

    Attributes:
        variances: of each landmark, over all its values: errors are parts of it.
        scores: the landmark that classes are read from; None where no labels are known.
    """

    variances: Mapping[str, float]
    scores: str | None = None

    def loss(
        self, found: Mapping[str, Tensor], wanted: Mapping[str, Array], labels: Labels | None = None
    ) -> Tensor:
        """The mean over landmarks of the squared error, as a part of the teacher's variance.

        With labels a part of the cross-entropy beside it.
        """
        total = torch.stack([self.error(name, each, wanted[name]) for name, each in found.items()]).mean()
        if labels is None or self.scores is None or self.scores not in found:
            return total
        scores = found[self.scores]
        truth = torch.as_tensor(labels, device=scores.device)
        return total + _TRUTH * functional.cross_entropy(scores.reshape(len(scores), -1).float(), truth)

    def error(self, name: str, found: Tensor, wanted: Array) -> Tensor:
        """The squared error of one landmark, as a part of its variance."""
        target = torch.as_tensor(wanted.astype(np.float32, copy=False), device=found.device)
        return functional.mse_loss(found.float(), target) / self.variances[name]
