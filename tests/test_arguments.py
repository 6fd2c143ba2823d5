"""Every argument of every public function, method and value: what is taken, and how the rest is refused.

The cases follow from the signatures: a new function is covered as it is made public.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any

import nets
import numpy as np
import pytest
from conftest import save
from onnx import ModelProto

import onnxdecomp
from onnxdecomp import Choice, Goal, Ranks, Samples, errors, ir
from onnxdecomp.timing import benching

NET = """
net (float[N,8,6,6] x) => (float[N,16,6,6] y) {
  [one] a = Conv <pads=[1,1,1,1]> (x, v)
  [two] b = Conv <pads=[1,1,1,1]> (a, w)
  y = Relu (b)
}
"""
# What no argument is meant to be given; where one of them makes sense, it must be taken.
WRONG: list[Any] = [
    None, object(), b"bytes", 0.5, math.nan, math.inf, -1, 0, True, 10**18, 10**5000,
    "", "no/such/file.x", "x:y", {}, {"x": object()}, {1: 2}, [], [object()], ["nonsense"], [[1]], (0,),
    np.zeros(2), np.array("no number"), lambda: None,
]  # fmt: skip
# What comes of a call that was understood.
OUTCOMES = (errors.NothingSelectedError, errors.GoalError)
# Arguments of which messages speak by another name: the kind of a goal stands before its value.
SYNONYMS = {("Goal", "value"): "value|macs"}


def callables() -> Iterator[tuple[str, type | None, Callable[..., Any]]]:
    """Public functions, values and their methods: the name, whose method it is, the callable."""
    for name in onnxdecomp.__all__:
        value = getattr(onnxdecomp, name)
        if not inspect.isclass(value):
            yield name, None, value
        elif not issubclass(value, BaseException):
            yield name, None, value
            for label, member in vars(value).items():
                if not label.startswith("_") and isinstance(member, FunctionType):
                    yield f"{name}.{label}", value, member
                elif not label.startswith("_") and isinstance(member, classmethod):
                    yield f"{name}.{label}", None, getattr(value, label)


CASES = [
    pytest.param(name, owner, function, parameter, id=f"{name}-{parameter.name}")
    for name, owner, function in callables()
    for parameter in inspect.signature(function).parameters.values()
    if parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and samples to give; nothing is timed, however often a bench is understood."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benching, "measure_cell", lambda *_: iter_nothing())
    save(nets.model(NET, v=nets.weight(16, 8, 3, 3), w=nets.weight(16, 16, 3, 3)), Path("in.onnx"))
    np.savez("x.npz", x=nets.signal(6, 8, 6, 6))


def iter_nothing() -> Iterator[Any]:
    """A generator of nothing."""
    yield from ()


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function, include_extras=True)


def required(function: Callable[..., Any]) -> list[str]:
    """The parameters that a call cannot leave out."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind != each.VAR_KEYWORD]


def alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is Annotated:
        return alternatives(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for each in typing.get_args(hint) for member in alternatives(each)]
    return [hint]


def valid(hint: Any) -> Any:
    """Something of this type that costs little."""
    made: dict[Any, Callable[[], Any]] = {
        ModelProto: lambda: "in.onnx",
        ir.Model: lambda: ir.load("in.onnx"),
        Samples: lambda: onnxdecomp.open_samples("x.npz", "in.onnx"),
        Goal: lambda: Goal("macs", 0.9),
        Choice: lambda: Choice("svd", Ranks(2, 2)),
        str: lambda: "cpu",
        int: lambda: 2,
        float: lambda: 0.5,
        bool: lambda: False,
        Path: lambda: Path("written"),
    }
    members = alternatives(hint)
    for member in (*made, *members):
        if member in members and member in made:
            return made[member]()
    if types.NoneType in members:
        return None
    first = members[0]
    if typing.get_origin(first) is collections.abc.Callable:
        return lambda *_: 0.5
    if dataclasses.is_dataclass(first):
        kinds = hints_of(first)
        return first(**{each: valid(kinds[each]) for each in required(first)})
    origin = typing.get_origin(first) or first
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {}
    if origin is np.ndarray:
        return np.ones((1, 4))
    arguments = typing.get_args(first)
    fixed = arguments and Ellipsis not in arguments
    return tuple(valid(each) for each in arguments) if origin is tuple and fixed else ()


@pytest.mark.parametrize(("name", "owner", "function", "parameter"), CASES)
def test_an_argument_is_taken_or_refused_by_its_name(
    name: str, owner: type | None, function: Callable[..., Any], parameter: inspect.Parameter
) -> None:
    if dataclasses.is_dataclass(function):
        example = valid(function)
        given = {each: getattr(example, each) for each in required(function)}
    else:
        hints = hints_of(function)
        given = {each: valid(hints[each]) for each in required(function) if each in hints}
    if name == "rewrite":
        given["rank"] = "in=0.5,out=0.5"
        given["policy"] = nets.ANYTHING
    if name == "read_trials":
        optuna = pytest.importorskip("optuna")
        optuna.create_study(storage="sqlite:///study.db", study_name="cpu")
        given["storage"] = "sqlite:///study.db"
    if name == "search":
        given |= {"cost": "macs", "policy": onnxdecomp.Policy(min_channels=1)}
    if name == "tune":
        made = nets.rewrite("in.onnx", 0.5, policy=nets.ANYTHING)
        given |= {"rewritten": made, "tuning": onnxdecomp.Tuning(steps=1, time_limit=1.0)}
    instance = [valid(owner)] if owner is not None else []
    unclear = []
    for value in WRONG:
        if (name, parameter.name) == ("tune", "tuning") and value is None:
            continue  # ten minutes
        try:
            carried_out = function(*instance, **given | {parameter.name: value})
            if hasattr(carried_out, "__enter__"):
                with carried_out:
                    pass
            elif inspect.isgenerator(carried_out):
                list(carried_out)
        except OUTCOMES:
            pass
        except (errors.OnnxdecompError, TypeError) as error:
            if not names(str(error), SYNONYMS.get((name, parameter.name), parameter.name), value):
                unclear.append(f"{show(value)}: {error}")
        except Exception as error:  # what the test is about
            unclear.append(f"{show(value)}: {type(error).__name__}: {error}")
    assert not unclear, "\n".join(unclear)


def names(message: str, parameter: str, value: Any) -> bool:
    """Whether a message says what it speaks of: the argument, or the path that it was given."""
    path = isinstance(value, str | np.ndarray) and len(str(value)) > 2 and str(value) in message
    return "\n" not in message and (path or re.search(rf"`(\w+\.)?({parameter})`", message) is not None)


def show(value: Any) -> str:
    return "10**5000" if isinstance(value, int) and value > 10**30 else repr(value)
