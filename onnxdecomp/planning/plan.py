"""The plan: per site, which decomposition with which ranks. Small, without tensors, and a JSON file."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import PathLike, naming, verified
from onnxdecomp.errors import UsageError, first_line
from onnxdecomp.factors import METHODS, ONE_RANK, Ranks
from onnxdecomp.ir import MOST_OF_TEXT, Site, read_file, write_text
from onnxdecomp.planning.choice import Choice
from onnxdecomp.planning.methods import applicable, rank_limits


@abridged
@verified
@dataclass(frozen=True, slots=True)
class Plan:
    """The choices by site name; sites it does not name stay as they are.

    An example is in docs/python.md under "Rewriting".
    """

    sites: Mapping[str, Choice] = field(default_factory=dict)

    def to_json(self) -> str:
        """The plan as a document: `{"version": 1, "sites": {NAME: {"method", "ranks": {"in", "out"}}}}`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The document as JSON values."""
        sites = {
            name: {"method": choice.method, "ranks": choice.ranks.to_dict()}
            for name, choice in self.sites.items()
        }
        return {"version": 1, "sites": sites}

    @classmethod
    @verified
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote, or a person.

        Raises:
            UsageError: not JSON, or not a plan; the message names the site.
        """
        with naming("text"):
            return cls._parse(text)

    @classmethod
    def _parse(cls, text: str) -> Plan:
        try:
            document = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the plan is not JSON: {first_line(error)}") from error
        return cls._read(document)

    @classmethod
    @verified
    def from_dict(cls, document: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` made.

        Raises:
            UsageError: not a plan; the message names the site.
        """
        with naming("document"):
            return cls._read(document)

    @classmethod
    def _read(cls, document: Any) -> Plan:
        version = document.get("version") if isinstance(document, dict) else None
        if version != 1 or isinstance(version, bool):
            raise UsageError('the plan must be {"version": 1, "sites": {…}}')
        sites = document.get("sites")
        if not isinstance(sites, dict) or set(document) - {"version", "sites"}:
            raise UsageError('the plan must be {"version": 1, "sites": {…}} and nothing more')
        return cls({name: _choice(name, entry) for name, entry in sites.items()})

    @verified
    def save(self, path: PathLike) -> None:
        """Write the document that `to_json` makes, whole or not at all.

        Raises:
            OutputError: the folder is missing, read-only or full.
            UsageError: `path` is a folder.
        """
        write_text(Path(path), self.to_json(), keep=set())

    @classmethod
    @verified
    def load(cls, path: PathLike) -> Plan:
        """The plan in the file at `path`, which `save` wrote, or a person.

        Raises:
            UsageError: it cannot be read, or as `from_json`; the message names the file.
        """
        try:
            # Some editors begin with a byte order mark.
            text = read_file(Path(path), MOST_OF_TEXT).decode("utf-8-sig")
        except OSError as error:
            raise UsageError(f"cannot read the plan {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"cannot read the plan {path}: it is not a text file") from error
        try:
            return cls._parse(text)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error


# What functions take for a plan.
PlanLike: TypeAlias = Annotated[Plan | str | os.PathLike[str], "a Plan or the path of one"]


def as_plan(plan: PlanLike) -> Plan:
    """`plan`, loaded where it is a path; raises as `Plan.load`."""
    if isinstance(plan, Plan):
        return plan
    with naming("plan"):
        return Plan.load(plan)


def _choice(name: str, entry: Any) -> Choice:
    where = f"plan, site '{name}'"
    if not isinstance(entry, dict) or set(entry) != {"method", "ranks"}:
        raise UsageError(f'{where}: write {{"method": …, "ranks": {{"in": …, "out": …}}}}')
    ranks = entry["ranks"]
    if not isinstance(ranks, dict) or set(ranks) - {"in", "out"}:
        raise UsageError(f'{where}: ranks must be {{"in": …, "out": …}}')
    if (flaw := _flaw(entry["method"], ranks.get("in"), ranks.get("out"))) is not None:
        raise UsageError(f"{where}: {flaw}")
    return _shared(entry["method"], ranks.get("in"), ranks.get("out"))


@functools.lru_cache(1 << 16)
def _shared(method: str, rank_in: int | None, rank_out: int | None) -> Choice:
    """A choice: the sites of a large plan have few different ones."""
    return Choice(method, Ranks(rank_in, rank_out))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name that stands twice would silently lose its first value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise UsageError(f"the plan names '{twice}' twice")
    return found


def _flaw(method: Any, rank_in: Any, rank_out: Any) -> str | None:
    """Why no site could be decomposed by `method` at these ranks, or None."""
    given = [rank for rank in (rank_in, rank_out) if rank is not None]
    if not isinstance(method, str) or method not in METHODS:
        return f"unknown method {method!r}; it is one of {', '.join(METHODS)}"
    for rank in given:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            return f"a rank must be a whole number above 0, not {rank!r}"
    if len(given) != (1 if method == "tucker1" else 2):
        need = "a rank for exactly one mode" if method == "tucker1" else "a rank for both modes"
        return f"{method} needs {need}"
    if method in ONE_RANK and given[0] != given[1]:
        return f"{method} has a single rank; give in and out the same"
    return None


def verify(plan: Plan, sites: Iterable[Site]) -> None:
    """Refuse a plan that names a site that is not there, cannot be decomposed, or has fewer channels.

    Raises:
        UsageError: one line that names the site.
    """
    by_name = {site.name: site for site in sites}
    for name, choice in plan.sites.items():
        site = by_name.get(name)
        if site is None:
            raise UsageError(
                f"`plan`, site '{name}': the model has no such Conv; `onnxdecomp inspect` lists them"
            )
        if (flaw := _flaw(choice.method, choice.ranks.input, choice.ranks.output)) is not None:
            raise UsageError(f"`plan`, site '{name}': {flaw}")
        if site.obstacle is not None:
            raise UsageError(f"`plan`, site '{name}' cannot be decomposed: {site.obstacle}")
        if choice.method not in applicable(site):
            fit = ", ".join(applicable(site))
            raise UsageError(
                f"`plan`, site '{name}' cannot be decomposed by {choice.method}; {fit} would fit"
            )
        ranks, limits = (choice.ranks.input, choice.ranks.output), rank_limits(site, choice.method)
        for side, rank, limit in zip(("in", "out"), ranks, limits, strict=True):
            if rank is not None and rank > limit:
                raise UsageError(
                    f"`plan`, site '{name}': rank {side}={rank} exceeds its {limit} channels a group"
                )
