"""What factoring and fitting a weight came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onnxdecomp.abridging import abridged
from onnxdecomp.factors import Chain, Floats
from onnxdecomp.planning import Choice


@dataclass(frozen=True, slots=True)
class Errors:
    """How far stored factors are from the weight W they replace, relative to ‖W‖ (Frobenius).

    Attributes:
        weight: ‖W − Ŵ‖ / ‖W‖ for the factors as stored; W has its BatchNormalization folded in.
        cast: what rounding the factors to a 16-bit element type did: ‖Ŵ − Ŵ in float64‖ / ‖W‖; None for wider
            types, whose rounding is below 1e-6.
    """

    weight: float
    cast: float | None


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a site's output over samples, channels and positions."""

    mean: float
    std: float


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What fitting to samples came to; errors are ‖y − ŷ‖ / ‖y‖ of the site's output.

    Attributes:
        plain_because: why the site has its plain factors; None where it was fitted.
        ridge: share of the mean variance of a patch, chosen on folds; None for plain factors.
        fitted: error on the samples the factors were fitted to.
        held_out: error on samples held out, mean over folds.
        plain: error of the plain factors on the same folds.
        original_spread: of the output of the original model.
        plain_spread: with the plain factors.
        spread: with the factors chosen.
        note: what else is to be said of the fit, None for nothing.
    """

    plain_because: str | None = None
    ridge: float | None = None
    fitted: float | None = None
    held_out: float | None = None
    plain: float | None = None
    original_spread: Spread | None = None
    plain_spread: Spread | None = None
    spread: Spread | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The "fit" of a site in the JSON report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of one unit, the choice they carry out, and their errors.

    `biases` are those of the chains, one per site of the unit, where samples moved them; None where they
    stay.
    """

    choice: Choice
    chain: Chain
    errors: Errors
    fit: Fit | None = None
    biases: tuple[Floats, ...] | None = None
