"""What a rewrite did, as a value and as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import PathLike, verified
from onnxdecomp.comparing import Check, Quality
from onnxdecomp.errors import StoppedError
from onnxdecomp.fitting import Errors, Factors, Fit
from onnxdecomp.ir import Model, Site, Survey, staged
from onnxdecomp.planning import Choice, Plan, chain_key, chain_macs, chain_params
from onnxdecomp.tuning import TuneResult


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """What became of one Conv.

    An example is in docs/python.md under "Rewriting".

    Attributes:
        site: the Conv as it was.
        choice: its decomposition, None where it was kept.
        reason: why it was kept, None where it was rewritten.
        after: parameters and multiply-accumulates now, None where not known.
        errors: of the factors as they were made, before any tuning; None where it was kept.
        fit: what fitting to samples came to, before any tuning; None without samples or where it was kept.
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
            "ranks": choice.ranks.to_dict() if choice else None,
            "params": {"before": site.params, "after": self.after[0]},
            "macs": {"before": site.macs, "after": self.after[1]},
            "weight_error": self.errors.weight if self.errors else None,
            "cast_error": self.errors.cast if self.errors else None,
        } | ({"fit": self.fit.to_dict()} if self.fit else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """(before, after) over all Convs of the model; None where not known.

    An example is in docs/python.md under "Rewriting".

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


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """The outcome of a rewrite; taken wherever a model is.

    An example is in docs/python.md under "Rewriting".

    Attributes:
        rewritten: the new model with the folder of its external data; as it was tuned, if it was.
        plan: what was carried out; apply it again with `rewrite(model, plan=plan)`.
        sites: one report per Conv, in graph order.
        totals: before and after.
        notes: one line each on what could not be found out.
        sources: the files of the original, which `save` never overwrites.
        check: of the new model against the original; None where none was made.
        quality: on samples held out; None where it was not measured.
        tuned: what tuning came to; None where the model was not tuned.
        interrupted: by what, where a signal or `progress` ended the tuning early; else None.
    """

    rewritten: Model
    plan: Plan
    sites: tuple[SiteReport, ...]
    totals: Totals
    notes: tuple[str, ...]
    sources: frozenset[Path] = field(repr=False)
    check: Check | None = None
    quality: Quality | None = None
    tuned: TuneResult | None = None
    interrupted: StoppedError | None = None

    @property
    def model(self) -> ModelProto:
        """The new model with all its data inside; read anew every time where they are external.

        Raises:
            ModelError: external data of the original, which are shared, are gone.
            UsageError: it would be larger than a ModelProto can be, 2 GB; write it with `save`.
        """
        return self.rewritten.whole()

    def as_model(self) -> Model:
        """The new model as other functions take it, its external data where they are."""
        return self.rewritten

    @verified
    def save(self, path: PathLike) -> None:
        """Write the new model, whole or not at all; it is not checked again: `check` says what came of that.

        External data go to `<path>.data`.

        Raises:
            ModelError: external data of the original, which are shared, are gone.
            OutputError: the folder is missing, read-only or full.
            UsageError: `path` is a folder, or belongs to the original.
        """
        with self.staged(path):
            pass

    @verified
    @contextlib.contextmanager
    def staged(self, path: PathLike, keep: Set[Path] | Sequence[Path] = ()) -> Iterator[Path]:
        """Write the new model beside `path`, and move it there when the block succeeds.

        Yields the whole model's path, for a check of what is about to be delivered.

        Args:
            path: where it shall stand in the end.
            keep: other files that must not be overwritten.

        Raises:
            OutputError, UsageError: as `save`.
        """
        with staged(self.rewritten, Path(path), {*self.sources, *keep}) as candidate:
            yield candidate

    def to_dict(self) -> dict[str, Any]:
        """The JSON report; "check", "quality" and "tuning" are in it where they were made."""
        document: dict[str, Any] = {
            "sites": [site.to_dict() for site in self.sites],
            "total": self.totals.to_dict(),
        }
        if self.check is not None:
            document["check"] = self.check.to_dict()
        if self.quality is not None:
            document["quality"] = self.quality.to_dict()
        if self.tuned is not None:
            document["tuning"] = self.tuned.to_dict()
        if self.tuned is not None or self.interrupted is not None:
            document["complete"] = self.interrupted is None
        return document


def report_of(site: Site, decision: Choice | str, outcome: Factors | None) -> SiteReport:
    """What became of a site, of whose decision `outcome` are the factors."""
    if isinstance(decision, str) or outcome is None:
        return SiteReport(
            site=site, choice=None, reason=str(decision), after=(site.params, site.macs), errors=None
        )
    after = (chain_params(site, decision), chain_macs(site, decision))
    return SiteReport(
        site=site, choice=decision, reason=None, after=after, errors=outcome.errors, fit=outcome.fit
    )


def totals_of(found: Survey, reports: Sequence[SiteReport], rewritten: Model) -> Totals:
    """Sums over all sites, what several share counted once; None where one is not known."""
    before: dict[object, int | None] = {}
    after: dict[object, int | None] = {}
    for anchor, report in zip(found.anchors, reports, strict=True):
        key = anchor.weight.key if anchor.weight is not None else anchor.site.name
        before[key] = report.site.params
        after[key if report.choice is None else (chain_key(anchor), report.choice)] = report.after[0]
    return Totals(
        params=(_sum(before.values()), _sum(after.values())),
        macs=(_sum(r.site.macs for r in reports), _sum(r.after[1] for r in reports)),
        nbytes=(found.model.nbytes(), rewritten.nbytes()),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    listed = list(values)
    return None if None in listed else sum(value for value in listed if value is not None)
