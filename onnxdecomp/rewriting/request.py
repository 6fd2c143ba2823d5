"""What the user asks for, read and verified before any work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxdecomp.errors import UsageError, first_line
from onnxdecomp.ir import InputShapes, Model, Survey, survey
from onnxdecomp.planning import Plan, Policy, RankRule, parse_rank
from onnxdecomp.runtime import feeds_shapes, with_sizes
from onnxdecomp.sampling import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Ranks by a rule or by a plan, for the sites whose names match.

    Attributes:
        rule: for ranks; None where there is a plan.
        plan: explicit choices, carried out to the letter; None where there is a rule.
        policy: what the rule may choose.
        only: the sites whose names have this in them are rewritten.
        skip: but not those whose names have this in them; None for none.
    """

    rule: RankRule | None = None
    plan: Plan | None = None
    policy: Policy
    only: re.Pattern[str] = re.compile("")
    skip: re.Pattern[str] | None = None

    @classmethod
    def parse(
        cls,
        rank: str | int | float | None,
        plan: Plan | None,
        policy: Policy | None,
        only: str | None = None,
        skip: str | None = None,
    ) -> Request:
        """The request behind the arguments of `rewrite`.

        Raises:
            UsageError: neither or both of rank and plan, or one of the texts cannot be read.
        """
        if (rank is None) == (plan is None):
            raise UsageError("give either `rank` or `plan`, one of the two")
        return cls(
            rule=parse_rank(rank) if rank is not None else None,
            plan=plan,
            policy=policy or Policy(),
            only=_compile("only", only or ""),
            skip=_compile("skip", skip) if skip else None,
        )

    @property
    def narrowed(self) -> bool:
        """Whether the user names the sites that are rewritten."""
        return bool(self.only.pattern)

    def wants(self, name: str) -> bool:
        """Whether the user's regular expressions let the site `name` be rewritten."""
        return bool(self.only.search(name)) and not (self.skip is not None and self.skip.search(name))

    def survey(
        self,
        model: Model,
        input_shapes: InputShapes | None,
        data: Samples | None,
        *,
        freeze: bool,
        fold_bn: bool,
    ) -> Survey:
        """The sites of `model` that the request may be about: a plan may name a Gemm or MatMul too.

        Args:
            model: the original.
            input_shapes: for inputs with unknown dimensions; None takes those of the first sample, if any.
            data: the samples.
            freeze: treat weights that callers may override as constant.
            fold_bn: look for BatchNormalizations to fold.
        """
        feeds = next(data.batches(1)) if data is not None and not input_shapes else None
        shapes = feeds_shapes(feeds) if feeds is not None else input_shapes or {}
        linear = self.policy.wants_linear or self.plan is not None
        found = survey(model, input_shapes=shapes, freeze=freeze, fold_bn=fold_bn, linear=linear)
        if self.plan is not None and not self.policy.wants_linear:
            found = found.without_linear(set(found.names()) - set(self.plan.sites))
        return with_sizes(found, shapes, feeds)


def _compile(parameter: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"`{parameter}` '{text}' is not a regular expression: {first_line(error)}"
        ) from error
