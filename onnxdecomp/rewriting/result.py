"""What a rewrite did, as a value and as JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxdecomp.fitting import Errors, Fit
from onnxdecomp.ir import Model, Site, save
from onnxdecomp.planning import Choice, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """What became of one Conv.

    Attributes:
        site: the Conv as it was.
        choice: its decomposition, None where it was kept.
        reason: why it was kept, None where it was rewritten.
        after: parameters and multiply-accumulates now, None where not known.
        errors: of the stored factors, None where it was kept.
        fit: what fitting to samples came to, None without samples or where it was kept.
    """

    site: Site
    choice: Choice | None
    reason: str | None
    after: tuple[int | None, int | None]
    errors: Errors | None
    fit: Fit | None = None

    def to_dict(self) -> dict[str, Any]:
        """The entry of this site in the JSON report."""
        choice, site = self.choice, self.site
        return {
            "name": site.name,
            "status": "rewritten" if choice else "kept",
            "reason": self.reason,
            "kernel": list(site.kernel),
            "groups": site.groups,
            "method": choice.method if choice else None,
            "ranks": {"in": choice.ranks.input, "out": choice.ranks.output} if choice else None,
            "params": {"before": site.params, "after": self.after[0]},
            "macs": {"before": site.macs, "after": self.after[1]},
            "weight_error": self.errors.weight if self.errors else None,
            "cast_error": self.errors.cast if self.errors else None,
        } | ({"fit": self.fit.to_dict()} if self.fit else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """(before, after) over all Convs of the model; None where not known.

    Attributes:
        params: elements of the weights, biases not counted; a weight that several Convs share counts once.
        macs: multiply-accumulates of one run.
        nbytes: size of the whole model, external data included.
    """

    params: tuple[int | None, int | None]
    macs: tuple[int | None, int | None]
    nbytes: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """The totals of the JSON report."""
        pairs = {"params": self.params, "macs": self.macs, "bytes": self.nbytes}
        return {name: {"before": before, "after": after} for name, (before, after) in pairs.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """The outcome of a rewrite.

    Attributes:
        rewritten: the new model with the folder of its external data.
        plan: what was carried out; apply it again with `rewrite(model, plan=plan)`.
        sites: one report per Conv, in graph order.
        totals: before and after.
        notes: one line each on what could not be found out.
        sources: the files of the original, which `save` never overwrites.
    """

    rewritten: Model
    plan: Plan
    sites: tuple[SiteReport, ...]
    totals: Totals
    notes: tuple[str, ...]
    sources: frozenset[Path]

    @property
    def model(self) -> ModelProto:
        """The new model; tensors that were external still are, see `save`."""
        return self.rewritten.proto

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the new model, whole or not at all; external data go to `<path>.data`.

        Raises:
            OutputError: the folder is missing, read-only or full.
            UsageError: `path` belongs to the original.
        """
        save(self.rewritten, path, set(self.sources))

    def to_dict(self) -> dict[str, Any]:
        """The JSON report, without the check."""
        return {"sites": [site.to_dict() for site in self.sites], "total": self.totals.to_dict()}
