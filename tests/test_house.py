"""The house: which room may import which, and that rooms are entered through their front door."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxdecomp

PACKAGE = Path(onnxdecomp.__file__).parent
GROUND = ("abridging", "arguments", "errors", "progress", "stopping")
# A room may import from the rooms before it, and from the ground floor.
ROOMS = (
    "ir",
    "runtime",
    "factors",
    "planning",
    "lowering",
    "sampling",
    "comparing",
    "fitting",
    "tuning",
    "rewriting",
    "timing",
    "searching",
    "show",
    "cli",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The modules of the package that a file imports from, wherever in it, with the names.

    A room may be imported as a whole: the names are then what the file takes out of it.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    taken: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            taken.setdefault(node.value.id, []).append(node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "onnxdecomp":
            yield from ((f"onnxdecomp.{alias.name}", taken.get(alias.name, [])) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "onnxdecomp":
            yield str(node.module), [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names if alias.name.split(".")[0] == "onnxdecomp")


def exports(room: str) -> dict[str, str]:
    """What a room hands out: names, with the file that defines each."""
    stub = PACKAGE / room / "__init__.pyi"
    tree = ast.parse(stub.read_text(encoding="utf-8")) if stub.exists() else ast.Module([], [])
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in nodes for alias in node.names}


def test_the_rooms_are_those_on_the_list() -> None:
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_rooms_further_up_and_enter_by_the_front_door(path: Path) -> None:
    place = path.relative_to(PACKAGE).parts
    room = place[0] if len(place) > 1 else None
    for module, names in imports(path):
        target = module.split(".")[1:]
        if not target:  # the public names: for the command line alone
            assert room == "cli" or place == ("__main__.py",), module
        elif target[0] in GROUND:
            assert len(target) == 1, module
        elif target[0] != room:
            assert room is None or ROOMS.index(target[0]) < ROOMS.index(room), module
            assert len(target) == 1, f"{module} is not for other rooms"
            assert names or room is None
            assert set(names) <= exports(target[0]).keys() | ({"main"} if room is None else set())


@pytest.mark.parametrize("room", ROOMS[:-1])
def test_a_room_hands_out_only_what_somebody_uses(room: str) -> None:
    outside = [path for path in FILES if path.relative_to(PACKAGE).parts[0] != room]
    outside += [path for folder in ("bench", "models") for path in (PACKAGE.parent / folder).rglob("*.py")]
    found = [names for path in outside for module, names in imports(path) if module == f"onnxdecomp.{room}"]
    used = {name for names in found for name in names}
    public = exports("")
    assert exports(room).keys() <= used | {name for name, place in public.items() if place == room}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_in_one_sentence_what_lives_there(room: str) -> None:
    sentence = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
    assert sentence is not None
    assert len(sentence.splitlines()) == 1


@pytest.mark.parametrize("room", ROOMS)
def test_no_name_is_that_of_its_file(room: str) -> None:
    assert not [name for name, file in exports(room).items() if name == file]


def test_sessions_are_opened_in_one_room() -> None:
    naming = [path for path in FILES if "InferenceSession" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(PACKAGE).parts[0] for path in naming} == {"runtime"}


def test_nothing_is_printed_below_the_command_line() -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] not in ("cli", "__main__.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert "print" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


# What other programs are told.
FOREIGN_FLAGS = {"--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"}


def texts(node: ast.AST) -> Iterator[str]:
    """The string literals in a file; of those with values inside, "x" stands for each value."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


def test_only_the_command_line_names_its_options() -> None:
    naming = set()
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] not in ("cli", "show"):
            found = set(texts(ast.parse(path.read_text(encoding="utf-8")))) - FOREIGN_FLAGS
            naming |= {path.relative_to(PACKAGE).as_posix() for text in found if re.search("--[a-z]", text)}
    assert not naming
