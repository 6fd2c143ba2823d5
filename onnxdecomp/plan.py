"""The plan: per site, which decomposition with which ranks. Small, without tensors, and a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxdecomp.errors import UsageError
from onnxdecomp.ranks import Ranks
from onnxdecomp.sites import ConvSite

METHODS = ("tucker2", "tucker1")


@dataclass(frozen=True, slots=True)
class Choice:
    """How one site is decomposed.

    Attributes:
        method: "tucker2" (both channel modes) or "tucker1" (one of them: the one with a rank).
        ranks: per group.
    """

    method: str
    ranks: Ranks


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices by site name; sites it does not name stay as they are."""

    sites: Mapping[str, Choice] = field(default_factory=dict)

    def to_json(self) -> str:
        """The plan as a document: `{"version": 1, "sites": {NAME: {"method", "ranks": {"in", "out"}}}}`."""
        sites = {
            name: {"method": choice.method, "ranks": {"in": choice.ranks.input, "out": choice.ranks.output}}
            for name, choice in self.sites.items()
        }
        return json.dumps({"version": 1, "sites": sites}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote, or a person.

        Raises:
            UsageError: not JSON, or not a plan; the message names the site.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"the plan is not JSON: {error}") from error
        if not isinstance(document, dict) or document.get("version") != 1:
            raise UsageError('the plan must be {"version": 1, "sites": {…}}')
        sites = document.get("sites")
        if not isinstance(sites, dict) or set(document) - {"version", "sites"}:
            raise UsageError('the plan must be {"version": 1, "sites": {…}} and nothing more')
        return cls({name: _choice(name, entry) for name, entry in sites.items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan in the file at `path`; raises UsageError as `from_json` does, or if it cannot be read."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read the plan {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"cannot read the plan {path}: it is not a text file") from error


def _choice(name: str, entry: Any) -> Choice:
    where = f"plan, site '{name}'"
    if not isinstance(entry, dict) or set(entry) != {"method", "ranks"}:
        raise UsageError(f'{where}: write {{"method": …, "ranks": {{"in": …, "out": …}}}}')
    if entry["method"] not in METHODS:
        raise UsageError(f"{where}: unknown method {entry['method']!r}; it is one of {', '.join(METHODS)}")
    ranks = entry["ranks"]
    if not isinstance(ranks, dict) or set(ranks) - {"in", "out"}:
        raise UsageError(f'{where}: ranks must be {{"in": …, "out": …}}')
    for rank in ranks.values():
        if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
            raise UsageError(f"{where}: a rank must be a whole number above 0, not {rank!r}")
    choice = Choice(entry["method"], Ranks(ranks.get("in"), ranks.get("out")))
    sides = sum(rank is not None for rank in (choice.ranks.input, choice.ranks.output))
    if sides != (2 if choice.method == "tucker2" else 1):
        need = "a rank for both modes" if choice.method == "tucker2" else "a rank for exactly one mode"
        raise UsageError(f"{where}: {choice.method} needs {need}")
    return choice


def verify(plan: Plan, sites: Iterable[ConvSite]) -> None:
    """Refuse a plan that names a site that is not there, cannot be decomposed, or has fewer channels.

    Raises:
        UsageError: one line that names the site.
    """
    by_name = {site.name: site for site in sites}
    for name, choice in plan.sites.items():
        site = by_name.get(name)
        if site is None:
            raise UsageError(
                f"plan, site '{name}': the model has no such Conv; `onnxdecomp inspect` lists them"
            )
        if site.obstacle is not None:
            raise UsageError(f"plan, site '{name}' cannot be decomposed: {site.obstacle}")
        c_in, c_out = site.group_channels
        for side, rank, channels in (("in", choice.ranks.input, c_in), ("out", choice.ranks.output, c_out)):
            if rank is not None and rank > channels:
                raise UsageError(
                    f"plan, site '{name}': rank {side}={rank} exceeds its {channels} channels a group"
                )
