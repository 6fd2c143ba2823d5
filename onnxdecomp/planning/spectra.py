"""What the spectra of a model's weights say: the energy each mode keeps, and what each rule makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from onnxdecomp.abridging import abridged
from onnxdecomp.factors import Floats, Spectrum
from onnxdecomp.ir import Anchor, NotFiniteError, Site, read_finite_weight
from onnxdecomp.planning.choice import Choice
from onnxdecomp.planning.choosing import choose_ranks
from onnxdecomp.planning.cost import chain_macs, chain_params, macs_ratio
from onnxdecomp.planning.policy import Policy, weighed_methods
from onnxdecomp.planning.rules import parse_rank

# Parts of a mode's channels whose energy is shown, and the rules whose choices are.
PARTS = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2}
RULES = ("0.25", "energy=0.9", "vbmf", "params=0.5", "macs=0.5")


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteSpectra:
    """The spectra of one site and the choices of the rules; worthwhile or not.

    An example is in docs/python.md under "Looking into a model".

    Attributes:
        site: the site.
        modes: spectra of the input and the output mode (equal where one rank serves both).
        choices: by rule, the choice or a sentence saying why there is none.
    """

    site: Site
    modes: tuple[Spectrum, Spectrum]
    choices: Mapping[str, Choice | str]

    def energies(self) -> dict[str, dict[str, float]]:
        """Share of the energy kept at parts of the channels, by mode and part."""
        return {
            side: {
                part: spectrum.energy(round(share * spectrum.squares.shape[1]))
                for part, share in PARTS.items()
            }
            for side, spectrum in zip(("in", "out"), self.modes, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """The spectrum of this site in the JSON of `inspect`."""
        rules = {rule: self._choice_dict(choice) for rule, choice in self.choices.items()}
        return {"energy": self.energies(), "rules": rules}

    def _choice_dict(self, choice: Choice | str) -> dict[str, Any]:
        if isinstance(choice, str):
            return {"reason": choice}
        return {
            "method": choice.method,
            "ranks": choice.ranks.to_dict(),
            "params": chain_params(self.site, choice),
            "macs": chain_macs(self.site, choice),
            "macs_ratio": macs_ratio(self.site, choice),
        }


def find_spectra(anchors: Iterable[Anchor], policy: Policy, folder: Path) -> Iterator[SiteSpectra]:
    """The spectra of every site that can be decomposed, one weight in memory at a time."""
    from onnxdecomp.factors import spectra  # with TensorLy, slow to load; most inspections need none

    for anchor in anchors:
        methods = weighed_methods(anchor.site, policy)
        if isinstance(methods, str):
            continue
        try:
            weight = read_finite_weight(anchor, folder)
        except NotFiniteError:
            continue  # the list of sites says so already
        get = partial(_same, weight)
        with threadpool_limits(1, user_api="blas"):
            choices = {
                rule: choose_ranks(anchor.site, methods, parse_rank(rule), policy, get) for rule in RULES
            }
            modes = spectra(methods[0], weight, anchor.site.groups or 1)
        yield SiteSpectra(site=anchor.site, modes=modes, choices=choices)


def _same(weight: Floats) -> Floats:
    return weight
