"""What searches keep on disk: shown by kind, and cleared without touching anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli, untouched

import onnxdecomp
from onnxdecomp.searching.cache import Cache
from onnxdecomp.searching.keeping import KINDS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two files of each kind, and with much else."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(folder))
    for kind in KINDS:
        for machine in ("a", "b"):
            Cache(kind, {"machine": machine}).put({"key": 1.0})
    (folder / "resnet.onnx").write_bytes(b"fetched")
    (folder / "costs-notes.json").write_text("a user's own")
    (folder / f"costs-{'0' * 24}.json").mkdir()
    (folder / f"costs-{'0' * 24}.json" / "inside.json").write_text("kept")
    (tmp_path / "elsewhere.json").write_text("kept")
    (folder / f"losses-{'0' * 24}.json").symlink_to(tmp_path / "elsewhere.json")
    return folder


def test_the_cache_is_shown_by_kind(folder: Path, cli: Cli) -> None:
    found = onnxdecomp.inspect_cache()
    assert found.folder == folder
    assert {each.kind: each.files for each in found.kinds} == {**dict.fromkeys(KINDS, 2), "other": 4}
    for kind in found.kinds[:-1]:
        own = [path for path in folder.glob(f"{kind.kind}-*.json") if path.name in names_of_searches()]
        assert kind.nbytes == sum(path.stat().st_size for path in own)
    with untouched(folder):
        shown = cli("cache", "--json", "-")
    assert json.loads(shown.out) == found.to_dict() and str(folder) in shown.err
    assert all(kind in shown.err for kind in (*KINDS, "other"))


def names_of_searches() -> set[str]:
    return {Cache(kind, {"machine": machine}).path.name for kind in KINDS for machine in ("a", "b")}


def test_clearing_removes_what_searches_made_and_nothing_else(folder: Path, cli: Cli) -> None:
    ours = {folder / name for name in names_of_searches()}
    before = {path: path.lstat().st_ino for path in folder.rglob("*")}
    done = cli("cache", "--clear")
    assert done.code == 0 and "removed 6 files" in done.out
    assert {path: path.lstat().st_ino for path in folder.rglob("*")} == {
        path: number for path, number in before.items() if path not in ours
    }
    assert (folder.parent / "elsewhere.json").read_text() == "kept"
    assert all(each.files == 0 for each in onnxdecomp.clear_cache().kinds)


def test_a_cache_that_is_not_there_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "nowhere"))
    assert not any(each.files for each in onnxdecomp.inspect_cache().kinds)
    assert cli("cache", "--clear").code == 0 and not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "file"))
    assert str(tmp_path / "file") in cli("cache").refusal()
    assert str(tmp_path / "file") in cli("cache", "--clear").refusal()
