"""The documents: every block runs or parses, every link leads somewhere, every option is explained."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from test_house import ROOMS

import onnxdecomp
from models.__main__ import app as models_app
from onnxdecomp.cli.app import app
from onnxdecomp.planning import parse_rank

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("onnxdecomp", "bench", "tests", "docs", "models", "examples")
GOALS = {"speedup", "macs", "params", "size", "max_error", "max_drop", "min_agreement"}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the page it stands on, the line of its fence, its language, its text."""

    page: Path
    line: int
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path, text: str) -> list[Block]:
    """The fenced blocks of a page; every fence must be closed."""
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*(`{3,}|~{3,})\s*(\S*)", line)
        if opened is None and fence:
            opened, lines = (number, fence[1], fence[2]), []
        elif opened is not None and fence and fence[1].startswith(opened[1]) and not fence[2]:
            found.append(Block(page, opened[0], opened[2], "\n".join(lines)))
            opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page.name}:{opened}: the block has no end"
    return found


TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [block for page, text in TEXTS.items() for block in blocks_of(page, text)]
PROGRAMS = ("onnxdecomp", "make", "python", "pip", "pre-commit", "$")


def kind_of(block: Block) -> str:
    """What the block is by its tag, or by what it looks like where it has none."""
    if block.tag:
        return {"bash": "sh", "shell": "sh"}.get(block.tag, block.tag)
    starts = [line.split()[0] for line in block.text.splitlines() if line.strip()]
    if any(start == "$" for start in starts):
        return "console"
    if starts and all(start in PROGRAMS or start.startswith("#") for start in starts):
        return "sh"
    if block.text.lstrip().startswith(("{", "[")):
        return "json"
    return "python" if re.match(r"(import|from|>>>) ", block.text.lstrip()) else "unknown"


def blocks(*kinds: str) -> pytest.MarkDecorator:
    """The test runs once for every block of these kinds."""
    return pytest.mark.parametrize("block", [b for b in BLOCKS if kind_of(b) in kinds], ids=str)


# Blocks
# ------


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_of_a_kind_that_is_tested(block: Block) -> None:
    assert kind_of(block) in ("python", "sh", "console", "json", "text")
    if kind_of(block) == "text":  # not a hiding place
        assert not [line for line in block.text.splitlines() if line.startswith(PROGRAMS[:-1])]


@blocks("python")
def test_python_runs(block: Block, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in shop.iterdir():
        (tmp_path / source.name).symlink_to(source, source.is_dir())
    # What a block writes must not go through a link into the folder of all.
    (tmp_path / "out.onnx").unlink()
    (tmp_path / "out.onnx").write_bytes((shop / "out.onnx").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    padded = "\n" * block.line + block.text  # a traceback shows the page's own lines
    exec(compile(padded, str(block.page), "exec"), {"__name__": "page"})


@blocks("json")
def test_json_parses(block: Block) -> None:
    document = json.loads(block.text)
    if isinstance(document, dict) and set(document) & {"version", "sites"}:
        plan = onnxdecomp.Plan.from_json(block.text)
        assert plan.to_dict() == document


@pytest.mark.parametrize("name", onnxdecomp.__all__)
def test_every_public_name_says_which_example_shows_it(name: str) -> None:
    value = getattr(onnxdecomp, name)
    if inspect.isclass(value) and issubclass(value, Exception):
        value, name = onnxdecomp.OnnxdecompError, "onnxdecomp.UsageError"  # one example for the whole tree
    said = " ".join((inspect.getdoc(value) or "").split())
    section = re.search(r'An example is in docs/python\.md under "(.+?)"\.', said)
    assert section is not None
    page = ROOT / "docs" / "python.md"
    part = re.split(rf"\n##+ {re.escape(section[1])}\n", TEXTS[page])[1].split("\n##")[0]
    assert "```python" in part and re.search(rf"\b{name}\b", part)


# Command lines
# -------------


def command_lines(block: Block) -> list[str]:
    """The commands of a block: its lines, or in a console those behind a `$`."""
    joined = block.text.replace("\\\n", " ").splitlines()
    if kind_of(block) == "console":
        return [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
    bare = [line.strip().removeprefix("$ ") for line in joined]
    return [line for line in bare if line and not line.startswith("#")]


LINES = [
    pytest.param(line, id=f"{block}-{number}")
    for block in BLOCKS
    if kind_of(block) in ("sh", "console")
    for number, line in enumerate(command_lines(block), 1)
]


def parse(program: typer.Typer, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The subcommand a command line names, and what it is given; nothing is carried out.

    Options of the program itself are only looked up, as some of them act when they are parsed.
    """
    group: Any = typer.main.get_command(program)
    if words and words[0].startswith("-"):
        assert set(words) <= {option for each in group.params for option in each.opts} | {"-h", "--help"}
        return "", {}
    outer = group.make_context("program", list(words))
    name, command, rest = group.resolve_command(outer, list(words))
    return name, command.make_context(name, rest, parent=outer).params


def check_onnxdecomp(words: Sequence[str]) -> None:
    name, given = parse(app, words)
    if given.get("rank") is not None:
        parse_rank(given["rank"])
    if name == "search":
        assert len([goal for goal in GOALS if given[goal] is not None]) == 1, "one goal"
    if name == "rewrite":
        assert (given["rank"] is None) != (given["plan"] is None), "a rank or a plan"


def check_make(words: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
    variables = re.findall(r"^(\w+) \?=", makefile, re.MULTILINE)
    for word in words:
        assert word.partition("=")[0] in variables if "=" in word else word in targets, word


def check_python(words: Sequence[str]) -> None:
    assert words[0] == "-m", "a script of the project is a module"
    module, rest = words[1], words[2:]
    if module == "models":
        parse(models_app, rest)
        return
    assert module.startswith("bench."), module
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    for word in rest:
        assert not word.startswith("--") or word in texts, f"{module} has no {word}"


def check_torchrun(words: Sequence[str]) -> None:
    assert list(words[:4]) == ["--nproc-per-node", words[1], "-m", "onnxdecomp"] and words[1].isdigit()
    check_onnxdecomp(words[4:])


def check_pip(words: Sequence[str]) -> None:
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words[1:]:
        asked = re.fullmatch(r"(?:\.|onnxdecomp)\[([\w,]+)\]", word)
        assert asked and set(asked[1].split(",")) <= extras["optional-dependencies"].keys(), word


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "onnxdecomp": check_onnxdecomp,
    "make": check_make,
    "python": check_python,
    "pip": check_pip,
    "torchrun": check_torchrun,
}


def check_line(line: str) -> None:
    """Refuse a command line that could not be carried out as it is written."""
    program, *words = shlex.split(line, comments=True)
    assert program in CHECKS, f"{program}: unknown here"
    CHECKS[program](words)


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_can_be_carried_out(line: str) -> None:
    check_line(line)


@pytest.mark.parametrize(
    "line",
    [
        "onnxdecomp rewrite in.onnx out.onnx --rank 0.25 --ranks 3",
        "onnxdecomp rewrite in.onnx out.onnx --rank 2.5",
        "onnxdecomp rewrite in.onnx out.onnx",
        "onnxdecomp rewrite --rank 0.25",
        "onnxdecomp search in.onnx out.onnx --speedup two",
        "onnxdecomp search in.onnx out.onnx --speedup 2 --macs 0.5",
        "onnxdecomp serch in.onnx",
        "onnxdecomp --versions",
        "make tests",
        "make PYTHONS=python3 test",
        "python -m bench.modle",
        "python -m bench.model --bathces 1,8",
        "python -m models fetsh u2netp",
        "python -m models export resnet18",
        'pip install ".[cpu,image]"',
        "rm in.onnx",
    ],
)
def test_a_command_line_that_is_wrong_is_refused(line: str) -> None:
    with pytest.raises((AssertionError, OSError, typer.TyperException, onnxdecomp.UsageError)):
        check_line(line)


# What stands between the blocks
# ------------------------------


def prose(page: Path) -> str:
    """A page less its blocks."""
    return re.sub(r"^(`{3,}).*?^\1$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists() and path.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = [
        s for s in spans(page) if re.fullmatch(r"(onnxdecomp|bench|tests|docs|models|examples)/[\w./-]+", s)
    ]
    real = [
        name for name in named if not re.search(r"[A-Z]{4,}-", name)
    ]  # words in capitals stand for others
    assert [name for name in real if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_sentence_exists(page: Path) -> None:
    """Placeholders may stand for arguments there, so only names are looked at."""
    group: Any = typer.main.get_command(app)
    for span in spans(page):
        words = span.split()
        if words[0] in ("make", "pip", "python"):
            check_line(span)
        elif words[0] == "onnxdecomp" and len(words) > 1:
            own = group.commands[words[1]].params if not words[1].startswith("-") else group.params
            known = {option for each in own for option in (*each.opts, *each.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= known | {"--help"}, span


def options(command: str) -> set[str]:
    """The long options of a command."""
    group: Any = typer.main.get_command(app)
    params = group.commands[command].params
    found = {option for each in params for option in (*each.opts, *each.secondary_opts)}
    return {option for option in found if option.startswith("--")}


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, row by row, less headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def documented(command: str) -> set[str]:
    """The options that the page of the command line has for a command: in its part, or as shared ones."""
    parts = re.split(r"^## ", prose(ROOT / "docs" / "command-line.md"), flags=re.MULTILINE)
    own = next(part for part in parts if part.startswith(f"{command}\n"))
    shared = next(part for part in parts if part.startswith("Options that several"))
    of_data = ("rewrite", "search", "tune", "compare", "bench")
    cells = [row[0] for row in rows(own)] + re.findall(r"^Exactly one goal: .*?;", own, re.M | re.S)
    for option, commands, _ in rows(shared):
        names = of_data if commands == "as `--data`" else commands.split(", ")
        cells += [option] if command in names or commands == "all" else []
    return {option for cell in cells for option in re.findall(r"--[a-z][\w-]*", cell)}


@pytest.mark.parametrize("command", ["inspect", "rewrite", "search", "tune", "compare", "bench", "cache"])
def test_the_page_of_the_command_line_has_every_option_and_no_other(command: str) -> None:
    assert documented(command) == options(command) - {"--help"}


def test_the_page_of_the_command_line_has_every_command() -> None:
    group: Any = typer.main.get_command(app)
    assert set(group.commands) == {
        row[0].split("onnxdecomp ")[1].split()[0]
        for row in rows(prose(ROOT / "docs" / "command-line.md").split("## ")[0])
        if "onnxdecomp " in row[0]
    }


def test_the_front_page_is_one_page() -> None:
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 120


def test_every_page_can_be_reached_from_the_front_page() -> None:
    front = TEXTS[ROOT / "README.md"]
    pages = [f"docs/{page.name}" for page in PAGES if page.parent != ROOT and page.stem != "README"]
    assert [page for page in pages if page not in front] == []


def test_the_map_shows_the_rooms_in_their_order() -> None:
    part = prose(ROOT / "CONTRIBUTING.md").split("## The map")[1].split("\n## ")[0]
    names = [re.fullmatch(r"`(\w+)`", row[0]) for row in rows(part)]
    assert tuple(name[1] for name in names if name) == ROOMS


def test_every_result_has_its_conditions_and_its_picture_is_shown() -> None:
    results = ROOT / "bench" / "results"
    assert {p.stem for p in results.glob("*.csv")} == {p.stem for p in results.glob("*.json")}
    page = TEXTS[ROOT / "docs" / "results.md"] + TEXTS[ROOT / "docs" / "how-it-works.md"]
    assert [p.name for p in results.glob("*.png") if f"bench/results/{p.name}" not in page] == []


@pytest.mark.parametrize("file", [".github/workflows/ci.yml", ".pre-commit-config.yaml"])
def test_what_runs_elsewhere_calls_make_alone(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = re.findall(r"^\s*(?:- )?(?:run|entry): *(.+)$", text, re.MULTILINE)
    assert lines and all(line.startswith("make ") for line in lines)
    for line in lines:
        check_line(line)
