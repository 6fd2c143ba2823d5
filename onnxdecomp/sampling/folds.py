"""Folds of samples, the same however they are ordered."""

from __future__ import annotations

import dataclasses
import hashlib
from itertools import chain

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.sampling.samples import Samples

_FOLDS = 4


def deal(samples: Samples) -> list[Samples]:
    """The samples in folds of nearly equal size, however they are ordered: sorted by their digests.

    Raises:
        UsageError: fewer than two samples.
    """
    if len(samples) < 2:
        raise UsageError("`data`: fitting needs at least 2 samples, 64 or more do well")
    unit = samples.batch or 1
    if len(samples) < 2 * unit:
        raise UsageError(
            f"`data`: the model takes {unit} samples at a time, and fitting needs two such batches"
        )
    order = [i for _, i in sorted((digest, i) for i, digest in enumerate(sample_digests(samples)))]
    units = [order[start : start + unit] for start in range(0, len(order), unit)]
    folds = (list(chain.from_iterable(units[fold::_FOLDS])) for fold in range(min(_FOLDS, len(units))))
    return [samples.subset(fold) for fold in folds]


def sample_digests(samples: Samples) -> list[bytes]:
    """What tells every sample from all others."""
    digests = []
    for feeds in dataclasses.replace(samples, batch=None).batches(1):
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(feeds):
            digest.update(np.ascontiguousarray(feeds[name]).tobytes())
        digests.append(digest.digest())
    return digests
