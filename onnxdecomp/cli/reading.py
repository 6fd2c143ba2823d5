"""Values that are read from several options each, wherever a command takes them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import onnxdecomp
from onnxdecomp.cli.choices import Method, Provider
from onnxdecomp.cli.options import FEW_CHANNELS, GOAL, RANKS, SAMPLES, WHERE, Linear, ProviderOptions, option
from onnxdecomp.cli.parsing import MOST_ALONG, MOST_THREADS, parse_goal, parse_options
from onnxdecomp.errors import UsageError

if TYPE_CHECKING:
    from onnxdecomp.planning import Policy
    from onnxdecomp.searching import Goal
    from onnxdecomp.timing import Setting
    from onnxdecomp.tuning import Tuning

Reader = TypeVar("Reader", bound=Callable[..., Any])


def reads(**readers: Callable[..., Any]) -> Callable[[Reader], Reader]:
    """Let a command, or another reader, take values that are read from several options each.

    Args:
        readers: by the name of the command's parameter, a function from options to its value. The parameters
            of that function stand in the place of the command's own.
    """

    def decorate(command: Reader) -> Reader:
        parameters: list[inspect.Parameter] = []
        for name, own in inspect.signature(command).parameters.items():
            parameters += _parameters(readers[name]) if name in readers else [_option(own, command)]

        @functools.wraps(command)
        def run(**options: Any) -> Any:
            values = {
                name: reader(**{each.name: options.pop(each.name) for each in _parameters(reader)})
                for name, reader in readers.items()
            }
            return command(**options, **values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run  # type: ignore[return-value]

    return decorate


def _parameters(reader: Callable[..., Any]) -> list[inspect.Parameter]:
    return [_option(each, reader) for each in inspect.signature(reader).parameters.values()]


def _option(parameter: inspect.Parameter, owner: Callable[..., Any]) -> inspect.Parameter:
    """A parameter as Typer wants it: its annotation evaluated; its place is that among the options."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = eval(annotation, owner.__globals__)
    return parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY)


def read_policy(
    method: Annotated[Method | None, option(RANKS, help="Default: tucker2, tucker1, svd.")] = None,
    linear: Linear = False,
    min_channels: Annotated[int | None, option(RANKS, help=f"{FEW_CHANNELS} Default: 16.")] = None,
    align: Annotated[
        int | None,
        option(RANKS, help="Round fractions up to a multiple of this many channels. Default: 8."),
    ] = None,
    allow_slower: Annotated[
        bool, option(RANKS, "--allow-slower", help="Also chains that save less than a fifth of the MACs.")
    ] = False,
) -> tuple[Policy, list[str]]:
    """What a rank rule may choose, and which of these options were given, which a plan would ignore."""
    given = {
        "method": method and method.value,
        "min_channels": min_channels,
        "align": align,
        "allow_slower": allow_slower or None,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return onnxdecomp.Policy(linear=linear, **chosen), list(chosen)


Figure = float | None


def read_goal(
    speedup: Annotated[Figure, option(GOAL, help="That many times as fast.")] = None,
    macs: Annotated[Figure, option(GOAL, help="That share of the Convs' MACs.")] = None,
    params: Annotated[Figure, option(GOAL, help="That share of the Convs' parameters.")] = None,
    size: Annotated[Figure, option(GOAL, help="That share of the file.")] = None,
    max_error: Annotated[
        Figure, option(GOAL, help="The fastest whose outputs differ by at most that, relatively.")
    ] = None,
    max_drop: Annotated[
        Figure, option(GOAL, help="The fastest whose accuracy drops by at most that (--labels).")
    ] = None,
    min_agreement: Annotated[
        Figure, option(GOAL, help="The fastest whose top-1 classes agree at least that often.")
    ] = None,
) -> Goal:
    """The one goal of a search."""
    return parse_goal(
        {
            "speedup": speedup,
            "macs": macs,
            "params": params,
            "size": size,
            "max_error": max_error,
            "max_drop": max_drop,
            "min_agreement": min_agreement,
        }
    )


def read_setting(
    provider: Annotated[Provider, option(WHERE, help="Where it must be fast.")] = Provider.CPU,
    provider_option: ProviderOptions = [],  # noqa: B006  (typer copies it)
    threads: Annotated[int, option(WHERE, min=1, max=MOST_THREADS, help="Of the CPU.")] = 1,
    batch: Annotated[int | None, option(WHERE, min=1, max=MOST_ALONG, help="Samples per run.")] = None,
) -> Setting:
    """The one place where a model must be fast."""
    (found,) = onnxdecomp.settings(
        [provider.value], options=parse_options(provider_option), threads=[threads], batches=[batch]
    )
    return found


def read_tuned(
    tune: Annotated[
        bool,
        option(SAMPLES, "--tune", help="Then train the factors, without labels, on what is not measured on."),
    ] = False,
    tune_limit: Annotated[
        float | None,
        option(SAMPLES, metavar="SECONDS", help="When tuning ends, the best so far kept; default: 600."),
    ] = None,
) -> Tuning | None:
    """How to tune what was fitted; None to leave it as it is."""
    if tune_limit is None:
        return onnxdecomp.Tuning() if tune else None
    if not tune:
        raise UsageError("--tune-limit says how long tuning may take: give --tune too")
    if not 0 < tune_limit < math.inf:
        raise UsageError(f"--tune-limit {tune_limit:g}: give a positive number of seconds")
    return onnxdecomp.Tuning(time_limit=tune_limit)
