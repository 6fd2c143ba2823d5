"""Arguments held against what functions say they take, before any work is done.

A function or a value that wears `verified` takes what its annotations say, and refuses the rest by the name
of the parameter. NumPy's numbers are taken for Python's. An alias says in words what it takes, as
`Annotated[str | os.PathLike[str], "a path"]`.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from onnxdecomp.errors import ModelError, UsageError

T = TypeVar("T", bound=Callable[..., Any])

# What functions take for a file or a folder.
PathLike = Annotated[str | os.PathLike[str], "a path"]

# Words for one, and for several.
_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    os.PathLike: ("a path", "paths"),
    types.NoneType: ("None", "None"),
    collections.abc.Callable: ("a function", "functions"),
}
_LISTS = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set, list, tuple, set)
_PLAIN = (bool, float, bytes, types.NoneType)
# Beyond, a whole number is none that anything here could have.
_HIGHEST = 2**63 - 1


def verified(target: T) -> T:
    """Let a function, a method or a dataclass verify its arguments against its annotations.

    Raises:
        UsageError: from then on, for an argument of another type; the message names the parameter.
    """
    if isinstance(target, type):
        target.__init__ = _verifying(target.__init__, target)  # type: ignore[misc]
        return target
    return typing.cast(T, _verifying(target, target))


@contextmanager
def naming(parameter: str) -> Iterator[None]:
    """Let what is refused in the block name the parameter that it came by."""
    try:
        yield
    except (UsageError, ModelError) as error:
        if f"`{parameter}`" in str(error):
            raise
        raise type(error)(f"`{parameter}`: {error}") from error


def _verifying(function: Callable[..., Any], annotated: Any) -> Callable[..., Any]:
    names = tuple(inspect.signature(function).parameters)
    bound = int(names[:1] == ("self",) or names[:1] == ("cls",))

    @functools.cache
    def parameters() -> dict[str, _Parameter]:
        hints = typing.get_type_hints(annotated, include_extras=True)
        return {name: _Parameter.of(name, hints[name]) for name in names[bound:]}

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        known = parameters()
        # What is too much or too little, Python itself says.
        more = {name: known[name].settle(each) if name in known else each for name, each in named.items()}
        own = zip(known.values(), values[bound:], strict=False)
        settled = [parameter.settle(value) for parameter, value in own]
        return function(*values[:bound], *settled, *values[bound + len(settled) :], **more)

    return call


@dataclass(frozen=True, slots=True)
class _Parameter:
    """One parameter.

    Attributes:
        name: in messages.
        hint: what it takes.
        classes: whose instances it takes, and nothing else of them need be known.
        containers: whose instances it takes, if their items are right.
        pairs: the classes of names and values in the dicts that it takes, where nothing else of them need be
            known.
        arity: of the functions that it takes; None where it takes none.
    """

    name: str
    hint: Any
    classes: frozenset[type]
    containers: tuple[type, ...]
    pairs: frozenset[tuple[type, type]]
    arity: int | None

    @classmethod
    def of(cls, name: str, hint: Any) -> _Parameter:
        members = _members(hint)
        plain = {each for each in members if isinstance(each, type) and not typing.get_origin(each)}
        origins: list[Any] = [typing.get_origin(each) for each in members]
        function = collections.abc.Callable
        calls = [typing.get_args(each)[0] for each in members if typing.get_origin(each) is function]
        return cls(
            name=name,
            hint=hint,
            classes=frozenset(plain | ({int} if float in plain else set())),
            containers=tuple(each for each in origins if each is not None and each is not function),
            pairs=frozenset(pair for each in members if (pair := _plain_pair(each)) is not None),
            arity=len(calls[0]) if calls else None,
        )

    def settle(self, value: Any) -> Any:
        """The value, as a plain one where it is NumPy's.

        Raises:
            UsageError: it is none that this parameter takes.
        """
        kind = type(value)
        if kind in self.classes and (value if kind is str else kind is not int or abs(value) <= _HIGHEST):
            return value  # values are made by the ten thousand
        plain = value
        if kind not in self.classes and not self._takes(value):
            plain = _plain(value)
            if not self._takes(plain):
                raise UsageError(f"`{self.name}` takes {_words(self.hint)}, not {_SHORT.repr(value)}")
        if isinstance(plain, int) and abs(plain) > _HIGHEST:
            raise UsageError(f"`{self.name}` takes no number as large as that; 64 bits must do")
        if kind is str and not plain and os.PathLike in map(_origin, _members(self.hint)):
            raise UsageError(f"`{self.name}` is an empty text; give {_words(self.hint)}")
        return plain

    def _takes(self, value: Any) -> bool:
        if type(value) is bool and bool not in self.classes and self.classes & {int, float}:
            return False  # in Python, True is a number
        if isinstance(value, tuple(self.classes)):
            return True
        if type(value) in (dict, list, tuple) and not value and isinstance(value, self.containers):
            return True
        if (
            type(value) is dict
            and self.pairs
            and {(type(name), type(each)) for name, each in value.items()} <= self.pairs
        ):
            return True  # plans may have a million sites
        if self.arity is not None and callable(value) and _accepts(value, self.arity):
            return True
        # Slow to load, and for containers of something alone.
        from typeguard import CollectionCheckStrategy, ForwardRefPolicy, TypeCheckError, check_type

        try:
            check_type(
                value,
                self.hint,
                forward_ref_policy=ForwardRefPolicy.ERROR,
                collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS,
            )
        except TypeCheckError:
            return False
        return True


def _plain_pair(hint: Any) -> tuple[type, type] | None:
    """The classes of names and values in a dict, if all that its annotation says is two of them."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin not in (dict, collections.abc.Mapping) or not all(isinstance(each, type) for each in arguments):
        return None
    return arguments[0], arguments[1]


def _accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # some builtins do not tell
        return True
    return True


def _plain(value: Any) -> Any:
    """NumPy's numbers and vectors as Python's; inside of lists and dicts too."""
    if getattr(value, "ndim", 2) < 2 and hasattr(value, "tolist"):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value) is dict:
        return {_plain(key): _plain(each) for key, each in value.items()}
    return value


# Words
# -----


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def _members(hint: Any) -> list[Any]:
    """The alternatives of a union, those within aliases too."""
    if typing.get_origin(hint) is Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for each in typing.get_args(hint) for member in _members(each)]
    return [hint]


def _words(hint: Any, number: int = 0) -> str:
    """What an annotation takes: of one value, or with a `number` of 1 of several."""
    origin, arguments = _origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return str(hint.__metadata__[0])
    if origin in (typing.Union, types.UnionType):
        *first, last = dict.fromkeys(_words(each, number) for each in arguments)
        return f"{', '.join(first)} or {last}" if first else last
    if origin is collections.abc.Callable and arguments and len(arguments[0]) == 1:
        return f"{_WORDS[origin][number]} of one argument"
    if origin in _WORDS:
        return _WORDS[origin][number]
    inner = [each for each in arguments if each is not Ellipsis]
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return f"{('a dict', 'dicts')[number]} of {_words(inner[1], 1)}" if inner else "a dict"
    if origin in _LISTS:
        return f"{('a list', 'lists')[number]} of {_words(inner[0], 1)}"
    return a_class(origin)


def a_class(kind: type) -> str:
    """The name of a class with its article, as it is spoken: "an int", "an ndarray", "a uint8"."""
    name = kind.__name__
    return f"{'an' if name[0] in 'aeioAEIO' or name.startswith('nd') else 'a'} {name}"


class _Short(reprlib.Repr):
    """Values as messages show them: plain ones as they are written, cut, and others by their class."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if abs(x) <= _HIGHEST else "a very large number"

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, bytes):
            return self.repr_str(x[: self.maxstring], level)  # type: ignore[arg-type]
        if isinstance(x, _PLAIN):
            return repr(x)
        return a_class(type(x))


_SHORT = _Short()
