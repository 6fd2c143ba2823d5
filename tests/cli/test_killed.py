"""What `kill -9` leaves behind goes with the next command, and nothing else does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import Cli, command, spawn, tree, untouched
from onnx import ModelProto

import onnxdecomp
from onnxdecomp.ir import Scratch, scratch_folder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows locks other things")
RANK = ("--rank", "0.25")
# As the process does a thing for the first time, it is killed.
KILL = """
import os, signal, sys
def audit(event, arguments):
    if event == "{event}" and "{part}" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
"""


@pytest.fixture(autouse=True)
def _here(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)
    np.savez("x.npz", x=nets.signal(6, 16, 8, 8))


def names() -> set[str]:
    return {path.name for path in Path().iterdir()}


@pytest.fixture
def left_over() -> Path:
    """What a process that was killed leaves: a scratch folder whose lock nobody holds any more."""
    scratch = Scratch.make(".out.onnx.", Path())
    (scratch.folder / "out.onnx").touch()
    os.close(scratch.lock or 0)
    return scratch.folder


def test_the_next_command_removes_what_a_killed_one_left(cli: Cli, small: Path) -> None:
    python, option, start, *rest = command("rewrite", "in.onnx", "out.onnx", *RANK, "--no-check")
    before = names()
    done = spawn(python, option, f"{KILL.format(event='os.rename', part='.out.onnx.')}\n{start}", *rest)
    (left,) = names() - before
    assert done.code == -signal.SIGKILL and left.startswith(".out.onnx.")
    assert cli("inspect", "in.onnx").code == 0
    assert names() == before


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "in.onnx"),
        ("rewrite", "in.onnx", "new.onnx", *RANK, "--no-check"),
        ("compare", "in.onnx", "in.onnx"),
        ("rewrite", "in.onnx", "new.onnx", "--rank", "nonsense"),
    ],
)
def test_any_command_does(cli: Cli, left_over: Path, words: tuple[str, ...]) -> None:
    cli(*words)
    assert not left_over.exists()


def test_so_does_python(small: Path, left_over: Path) -> None:
    result = onnxdecomp.rewrite("in.onnx", 0.25, check=False)
    assert left_over.exists()
    result.save("new.onnx")
    assert not left_over.exists() and Path("new.onnx").exists()


def test_what_lives_or_belongs_to_others_stays(cli: Cli, small: Path) -> None:
    here = small.parent
    for name in (".git.abcdefgh", ".out.onnx.short", ".out.onnx.abcdefg1"):
        Path(name).mkdir()
        Path(name, "file").touch()
    Path(".out.onnx.short", ".onnxdecomp-lock").write_text("\n")  # not a name of ours
    Path(".out.onnx.abcdefg1", ".onnxdecomp-lock").touch()  # about to be locked
    Path("elsewhere").mkdir()
    Path("elsewhere/.onnxdecomp-lock").write_text("\n")
    Path(".out.onnx.abcdefg2").symlink_to("elsewhere")
    with scratch_folder(".out.onnx.", here) as live:
        (live / "file").touch()
        before = tree(here)
        assert cli("inspect", "in.onnx").code == 0
        assert cli("rewrite", "in.onnx", "out.onnx", *RANK, "--no-check").code == 0
        Path("out.onnx").unlink()
        assert tree(here) == before
    assert not live.exists()


# Where the output goes
# ---------------------


@pytest.mark.parametrize("leads_to", ["other.onnx", "nothing.onnx", "folder/deep.onnx"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(cli: Cli, small: Path, leads_to: str) -> None:
    Path("folder").mkdir()
    if leads_to != "nothing.onnx":
        Path(leads_to).write_text("keep me")
    Path("out.onnx").symlink_to(leads_to)
    with untouched(small.parent, "out.onnx"):
        assert cli("rewrite", "in.onnx", "out.onnx", *RANK, "--no-check").code == 0
    assert (
        not Path("out.onnx").is_symlink() and ModelProto.FromString(Path("out.onnx").read_bytes()).graph.node
    )


@pytest.mark.parametrize("place", ["folder", "/dev/null", "/dev/full", "pipe", "link to folder", "in.onnx/"])
def test_a_model_goes_to_a_file_alone(cli: Cli, small: Path, place: str) -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    if place == "link to folder":
        Path(place).symlink_to("folder")
    with untouched(small.parent):
        for words in (("rewrite", "in.onnx", place, *RANK), ("search", "in.onnx", place, "--macs", "0.5")):
            assert place.rstrip("/") in cli(*words).refusal()


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_samples_and_plans_under_another_name_are_input(cli: Cli, small: Path, kind: str) -> None:
    Path("p.json").write_text('{"version": 1, "sites": {}}')
    for name in ("p.json", "x.npz"):
        link = Path(f"link to {name}")
        link.symlink_to(name) if kind == "symbolic" else link.hardlink_to(name)
    with untouched(small.parent):
        for name, given in (("p.json", ("--plan", "p.json")), ("x.npz", (*RANK, "--data", "x.npz"))):
            message = cli("rewrite", "in.onnx", "out.onnx", *given, "--json", f"link to {name}").refusal()
            assert f"link to {name} belongs to" in message


# Storages and plans
# ------------------

STORAGES = {
    "no file": "sqlite:///",
    "a folder": "sqlite:///folder",
    "in no folder": "sqlite:///none/x.db",
    "no database": "sqlite:///in.onnx",
    "a device": "sqlite:////dev/null",
    "a device as a journal": "journal:/dev/zero",
    "a folder as a journal": "journal:folder",
    "a model as a journal": "journal:in.onnx",
    "nothing as a journal": "journal:",
    "no kind": "://",
    "an unknown kind": "nosuch://x",
    "an unknown driver": "sqlite+nosuch:///x.db",
    "a host of a file": "sqlite://host/x",
    "a bad address": "postgresql://a:b@[::1/x",
    "too long": "sqlite:///" + "x" * 400,
}


@pytest.mark.parametrize("name", STORAGES)
def test_a_storage_that_cannot_be_opened_is_refused(cli: Cli, small: Path, name: str) -> None:
    pytest.importorskip("optuna")
    Path("folder").mkdir()
    given = (
        "--macs",
        "0.5",
        "--cost",
        "macs",
        "--data",
        "x.npz",
        "--trials",
        "1",
        "--storage",
        STORAGES[name],
    )
    with untouched(small.parent):
        for words in (("search", "in.onnx", "out.onnx", *given), ("trials", STORAGES[name])):
            message = cli(*words).refusal()
            assert message.startswith("--storage ") or "storage" in message, message


@pytest.mark.parametrize("number", [20_000, pytest.param(1_000_000, marks=pytest.mark.heavy)])
def test_a_plan_of_many_sites_is_read(cli: Cli, small: Path, number: int) -> None:
    """A million took a minute and a half, most of it to hold every choice against the annotation of all."""
    entry = '{"method": "tucker2", "ranks": {"in": 8, "out": 8}}'
    many = ",".join(f'"site {i}": {entry}' for i in range(number))
    Path("p.json").write_text(f'{{"version": 1, "sites": {{{many}}}}}')
    message = cli("rewrite", "in.onnx", "out.onnx", "--plan", "p.json").refusal()
    assert "site 'site 0': the model has no such Conv" in message
    plan = onnxdecomp.Plan.load("p.json")
    assert len(plan.sites) == number
    with pytest.raises(onnxdecomp.UsageError, match="`sites` takes"):
        onnxdecomp.Plan({**plan.sites, "one more": 8})  # type: ignore[dict-item]
