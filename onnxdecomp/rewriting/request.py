"""What the user asks for, read and verified before any work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxdecomp.errors import UsageError, first_line
from onnxdecomp.planning import Plan, RankRule, parse_rank


@dataclass(frozen=True, slots=True)
class Request:
    """Ranks by a rule or by a plan, for the sites whose names match."""

    rule: RankRule | None
    plan: Plan | None
    only: re.Pattern[str]
    skip: re.Pattern[str] | None

    @classmethod
    def parse(
        cls, rank: str | int | float | None, plan: Plan | None, only: str | None, skip: str | None
    ) -> Request:
        """The request behind the arguments of `rewrite`.

        Raises:
            UsageError: neither or both of rank and plan, or one of the texts cannot be read.
        """
        if (rank is None) == (plan is None):
            raise UsageError("give either a rank (--rank 0.25) or a plan (--plan FILE), one of the two")
        rule = parse_rank(rank) if rank is not None else None
        return cls(rule, plan, _compile(only or ""), _compile(skip) if skip else None)

    def wants(self, name: str) -> bool:
        """Whether the user's regular expressions let the site `name` be rewritten."""
        return bool(self.only.search(name)) and not (self.skip is not None and self.skip.search(name))


def _compile(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"'{text}' is not a regular expression: {first_line(error)}") from error
