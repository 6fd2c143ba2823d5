"""Hostile input and hostile surroundings: one clear line, inputs intact, the output whole or absent."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import SMALL, Cli, Outcome, command, save, save_external, small_model, spawn, untouched
from onnx import ModelProto, TensorProto

RANK = ("--rank", "0.25")
COMMANDS = [
    pytest.param(["inspect", "in.onnx"], id="inspect"),
    pytest.param(["rewrite", "in.onnx", "out.onnx", *RANK], id="rewrite"),
    pytest.param(["rewrite", "in.onnx", "out.onnx", *RANK, "--no-check"], id="no-check"),
    pytest.param(["compare", "in.onnx", "in.onnx"], id="compare"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Files that are no models
# ------------------------


def test_a_truncated_file_is_refused_whatever_its_length(cli: Cli, tmp_path: Path) -> None:
    whole = nets.data_path("models/cifar10_resnet20.onnx").read_bytes()
    few = random.Random(0).sample(range(len(whole)), 80)
    for length in [*range(24), *few, *range(len(whole) - 24, len(whole))]:
        Path("in.onnx").write_bytes(whole[:length])
        with untouched(tmp_path):
            cli("rewrite", "in.onnx", "out.onnx", *RANK).refusal()


def test_a_truncated_small_model_is_refused_whatever_its_length(cli: Cli, small: Path) -> None:
    whole = small.read_bytes()
    for length in [*range(0, len(whole), 199), *range(len(whole) - 120, len(whole))]:
        small.write_bytes(whole[:length])
        assert "in.onnx" in cli("inspect", "in.onnx").refusal()


@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"Gradient descent converges.\n" * 40, id="text"),
        pytest.param(bytes(4096), id="zeros"),
        pytest.param(b"\x08\x08", id="version only"),
        *(pytest.param(np.random.default_rng(i).bytes(5000), id=f"random {i}") for i in range(4)),
    ],
)
def test_bytes_that_are_no_model_are_refused(
    cli: Cli, tmp_path: Path, data: bytes, arguments: list[str]
) -> None:
    Path("in.onnx").write_bytes(data)
    with untouched(tmp_path):
        assert "in.onnx is not an ONNX model" in cli(*arguments).refusal()


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_missing_file_and_a_folder_are_refused(cli: Cli, tmp_path: Path, arguments: list[str]) -> None:
    assert cli(*arguments).refusal() == "cannot read in.onnx: No such file or directory"
    Path("in.onnx").mkdir()
    with untouched(tmp_path):
        assert cli(*arguments).refusal() == "cannot read in.onnx: Is a directory"


def test_the_installed_program_refuses_in_one_line(tmp_path: Path) -> None:
    Path("in.onnx").write_bytes(b"no model")
    script = Path(sys.executable).with_name("onnxdecomp")
    for program in ([script], [sys.executable, "-m", "onnxdecomp"]):
        with untouched(tmp_path):
            outcome = spawn(*program, "rewrite", "in.onnx", "out.onnx", *RANK)
            assert outcome.refusal().startswith("in.onnx is not an ONNX model")


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in (2, 3))])
def test_a_model_with_damaged_bytes_never_ends_in_a_traceback(cli: Cli, small: Path, seed: int) -> None:
    """Damage outside the raw weights, where it changes what the file says rather than the numbers in it."""
    chooser, whole = random.Random(seed), small.read_bytes()
    weights = whole.index(onnx.load(small).graph.initializer[0].raw_data)
    places = [*range(weights), *range(weights + 32 * 16 * 9 * 4, len(whole))]
    for _ in range(60):
        damaged = bytearray(whole)
        for place in chooser.sample(places, chooser.choice([1, 1, 2, 3])):
            damaged[place] = chooser.choice([0, 1, 127, 128, 255, chooser.randrange(256)])
        small.write_bytes(damaged)
        for outcome in (
            cli("inspect", "in.onnx"),
            cli("rewrite", "in.onnx", "out.onnx", *RANK, "--no-check"),
        ):
            if outcome.code != 0:
                assert outcome.code in (2, 3)
                outcome.refusal(outcome.code)


# Models that parse and make no sense
# -----------------------------------


@dataclass(frozen=True, slots=True)
class Damage:
    """A model that makes no sense, and what the refusal with --no-check must mention."""

    model: ModelProto
    mentions: str


def edited(edit: Callable[[ModelProto], Any], text: str = SMALL, **arrays: np.ndarray) -> ModelProto:
    model = small_model(text, **arrays)
    edit(model)
    return model


def tensor(model: ModelProto) -> TensorProto:
    return next(each for each in model.graph.initializer if each.name == "w")


def text(body: str, **arrays: np.ndarray) -> ModelProto:
    return small_model(f"odd (float[1,16,8,8] x) => (float[1,32,8,8] y) {{ {body} }}", **arrays)


CONV = "Conv <pads=[1,1,1,1]>"
W = nets.weight(32, 16, 3, 3)
SENSELESS = {
    "no graph content": Damage(edited(lambda m: m.graph.Clear()), "no Conv"),
    "no nodes": Damage(edited(lambda m: m.graph.ClearField("node")), "no Conv"),
    "no Conv": Damage(text("y = Relu (x)"), "no Conv"),
    "Identity behind itself": Damage(text(f"a = Identity (a) y = {CONV} (x, a)"), "dynamic"),
    "Identities in a circle": Damage(
        text(f"a = Identity (c) c = Transpose (d) d = Cast <to=1> (a) y = {CONV} (x, a)"), "dynamic"
    ),
    "weight from nowhere": Damage(text(f"y = {CONV} (x, q)"), "'q' is defined nowhere"),
    "Identity of nothing": Damage(text(f"a = Identity () y = {CONV} (x, a)"), "weight"),
    "Constant without a value": Damage(text(f"a = Constant () y = {CONV} (x, a)"), "weight"),
    "Transpose of five axes": Damage(
        text(f"a = Transpose <perm=[0,1,2,9]> (w) y = {CONV} (x, a)"), "Transpose"
    ),
    "Transpose of two axes": Damage(text(f"a = Transpose <perm=[0,1]> (w) y = {CONV} (x, a)"), "weight"),
    "Cast to no type": Damage(text(f"a = Cast <to=99> (w) y = {CONV} (x, a)"), "99"),
    "three groups": Damage(text("y = Conv <group=3> (x, w)"), "does not fit 3 groups"),
    "no groups": Damage(text("y = Conv <group=0> (x, w)"), "does not fit 0 groups"),
    "minus one group": Damage(text("y = Conv <group=-1> (x, w)"), "does not fit -1 groups"),
    "weight of rank 2": Damage(small_model(w=W[:, :, 0, 0]), "32×16"),
    "weight of rank 0": Damage(small_model(w=np.float32(1)), "weight"),
    "weight without channels": Damage(small_model(w=W[:, :0]), "32×0×3×3"),
    "weight without outputs": Damage(small_model(w=W[:0]), "0×16×3×3"),
    "negative dimension": Damage(edited(lambda m: tensor(m).dims.__setitem__(0, -32)), "w"),
    "two negative dimensions": Damage(
        edited(lambda m: tensor(m).dims.__setitem__(slice(0, 2), [-32, -16])), "w"
    ),
    "astronomic dimension": Damage(edited(lambda m: tensor(m).dims.__setitem__(0, 2**62)), "w"),
    "raw data too short": Damage(edited(lambda m: setattr(tensor(m), "raw_data", b"1234")), "w"),
    "raw data too long": Damage(edited(lambda m: setattr(tensor(m), "raw_data", W.tobytes() + b"1234")), "w"),
    "element type 99": Damage(edited(lambda m: setattr(tensor(m), "data_type", 99)), "99"),
    "integer weight": Damage(
        edited(lambda m: setattr(tensor(m), "data_type", TensorProto.INT32)), "int32, not a floating-point"
    ),
    "NaN in the weight": Damage(small_model(w=np.where(W > 2, np.nan, W * np.float32(np.nan))), "NaN or Inf"),
    "negative variance": Damage(
        text(f"h = {CONV} (x, w) y = BatchNormalization (h, s, s, s, s)", s=-np.ones(32, "f")), "NaN or Inf"
    ),
    "recursive function": Damage(
        nets.model(
            '<ir_version: 8, opset_import: ["" : 17, "l" : 1]> '
            "odd (float[1,16,8,8] x) => (float[1,32,8,8] y) { y = l.f (x) } "
            '<opset_import: ["" : 17, "l" : 1], domain: "l"> f (a) => (c) { c = l.f (a) }'
        ),
        "circle",
    ),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_a_model_that_makes_no_sense_is_refused_or_kept(cli: Cli, tmp_path: Path, name: str) -> None:
    save(SENSELESS[name].model, tmp_path / "in.onnx")
    with untouched(tmp_path):
        unchecked = cli("rewrite", "in.onnx", "out.onnx", *RANK, "--no-check")
        assert SENSELESS[name].mentions in unchecked.refusal(unchecked.code)
        assert unchecked.code in (2, 3)
        checked = cli("rewrite", "in.onnx", "out.onnx", *RANK)
        checked.refusal(checked.code)
        assert checked.code in (2, 3)
        inspected = cli("inspect", "in.onnx")
        assert inspected.code == 0 or inspected.refusal()


def element(model: ModelProto) -> Any:
    return model.graph.input[0].type.tensor_type


# What is wrong here does not concern the weight: the chain is as right or wrong as the Conv was.
INVALID = {
    "Conv fed by itself": edited(lambda m: m.graph.node[0].input.__setitem__(0, "h")),
    "Conv fed by what it feeds": edited(lambda m: m.graph.node[0].input.__setitem__(0, "y")),
    "strides of one axis": text("y = Conv <pads=[1,1,1,1], strides=[1]> (x, w)"),
    "strides of zero": text("y = Conv <pads=[1,1,1,1], strides=[0,0]> (x, w)"),
    "pads of one axis": text("y = Conv <pads=[1,1]> (x, w)"),
    "another kernel_shape": text("y = Conv <kernel_shape=[5,5]> (x, w)"),
    "too many input channels": small_model(w=nets.weight(32, 32, 3, 3)),
    "bias of five channels": small_model(b=np.ones(5, "f")),
    "BatchNormalization of seven channels": text(
        f"h = {CONV} (x, w) y = BatchNormalization (h, s, s, s, s)", s=np.ones(7, "f")
    ),
    "bias of five channels in front of a BatchNormalization": text(
        f"h = {CONV} (x, w, b) y = BatchNormalization (h, s, s, s, s)",
        b=np.ones(5, "f"),
        s=np.ones(32, "f"),
    ),
    "BatchNormalization of strings": text(
        f"h = {CONV} (x, w) y = BatchNormalization (h, s, s, s, s)", s=np.full(32, "a", object)
    ),
    "node without outputs": edited(lambda m: m.graph.node[0].output.__setitem__(0, "")),
    "nodes in the wrong order": edited(lambda m: m.graph.node.reverse()),
    "the same node twice": edited(lambda m: m.graph.node.add().CopyFrom(m.graph.node[0])),
    "operator set 9999": edited(lambda m: setattr(m.opset_import[0], "version", 9999)),
    "IR version 9999": edited(lambda m: setattr(m, "ir_version", 9999)),
    "IR version -3": edited(lambda m: setattr(m, "ir_version", -3)),
    "IR version 3, weights not listed": edited(lambda m: setattr(m, "ir_version", 3)),
    "input of no type": edited(lambda m: m.graph.input[0].ClearField("type")),
    "input of an unknown type": edited(lambda m: setattr(element(m), "elem_type", 77)),
    "an input dimension of -1": edited(lambda m: setattr(element(m).shape.dim[0], "dim_value", -1)),
    "escape codes in a name": edited(lambda m: setattr(m.graph.node[0], "name", "a\nb\x1b[2J[red]c")),
}


@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_model_is_refused_or_rewritten_but_never_a_traceback(
    cli: Cli, tmp_path: Path, name: str, arguments: list[str]
) -> None:
    save(INVALID[name], tmp_path / "in.onnx")
    with untouched(tmp_path):
        outcome = cli(*arguments)
        if outcome.code == 0 and "rewrite" in arguments:
            onnx.load("out.onnx")
            Path("out.onnx").unlink()
    assert outcome.code == 0 or outcome.refusal(outcome.code)
    assert outcome.code in (0, 2, 3)
    assert "\x1b" not in outcome.out


@pytest.mark.parametrize("name", ["Conv fed by itself", "Conv fed by what it feeds"])
def test_a_cycle_is_called_one(cli: Cli, tmp_path: Path, name: str) -> None:
    save(INVALID[name], tmp_path / "in.onnx")
    assert "topologically sorted" in cli("rewrite", "in.onnx", "out.onnx", *RANK).refusal()


# Where the output goes
# ---------------------


@pytest.mark.parametrize("link", ["same", "symbolic", "hard", "input is the link", "another spelling"])
@pytest.mark.parametrize("option", ["", "--json", "--save-plan"])
def test_the_input_is_never_overwritten(cli: Cli, small: Path, link: str, option: str) -> None:
    source, target = Path("in.onnx"), Path("in.onnx")
    if link == "symbolic":
        (target := Path("link.onnx")).symlink_to("in.onnx")
    elif link == "hard":
        (target := Path("link.onnx")).hardlink_to("in.onnx")
    elif link == "input is the link":
        (source := Path("link.onnx")).symlink_to("in.onnx")
    elif link == "another spelling":
        Path("folder").mkdir()
        target = Path("folder/../in.onnx")
    places = ["out.onnx", option, target] if option else [target]
    with untouched(small.parent):
        outcome = cli("rewrite", source, *places, *RANK)
        assert f"{target} belongs to the input, and is never overwritten" in outcome.refusal()


@pytest.mark.parametrize("option", ["", "--json", "--save-plan"])
def test_the_data_file_of_the_input_is_never_overwritten(cli: Cli, tmp_path: Path, option: str) -> None:
    """Also where it is only the output's data file that would take its place."""
    save_external(small_model(), tmp_path / "in.onnx", location="out.onnx.data")
    places = ["result.onnx", option, "out.onnx.data"] if option else ["out.onnx"]
    with untouched(tmp_path):
        assert "out.onnx.data belongs to the input" in cli("rewrite", "in.onnx", *places, *RANK).refusal()


@pytest.mark.parametrize("name", ["labels.npy", "labels.csv", "more.npz"])
def test_the_labels_are_input_too(cli: Cli, small: Path, name: str) -> None:
    images = nets.signal(6, 16, 8, 8)
    np.savez("samples.npz", x=images)
    np.save("labels.npy", np.arange(6))
    np.savez("more.npz", y=np.arange(6))
    if name == "labels.csv":
        Path("samples").mkdir()
        for i in range(6):
            np.savez(f"samples/{i}.npz", x=images[i : i + 1])
        Path(name).write_text("".join(f"{i}.npz,{i}\n" for i in range(6)))
    given = ["--data", "samples" if name == "labels.csv" else "samples.npz"]
    given += ["--labels", f"{name}:y" if name == "more.npz" else name]
    with untouched(small.parent):
        for places in ([name], ["out.onnx", "--json", name]):
            refused = cli("rewrite", "in.onnx", *places, *RANK, *given).refusal()
            assert f"{name} belongs to the labels" in refused
        refused = cli("search", "in.onnx", "out.onnx", "--macs", 0.5, "--json", name, *given).refusal()
        assert f"{name} belongs to the labels" in refused


def test_the_samples_and_the_plan_are_input_too(cli: Cli, small: Path) -> None:
    Path("plan.json").write_text('{"version": 1, "sites": {}}')
    np.savez("samples.npz", x=nets.signal(1, 16, 8, 8))
    with untouched(small.parent):
        for_plan = cli("rewrite", "in.onnx", "out.onnx", "--plan", "plan.json", "--json", "plan.json")
        assert "plan.json belongs to the plan" in for_plan.refusal()
        both = ("--data", "samples.npz", "--json", "samples.npz")
        refused = cli("compare", "in.onnx", "in.onnx", *both).refusal()
        assert "samples.npz belongs to the samples" in refused


@pytest.mark.parametrize("file", ["study.onnx", "study.onnx.data", "mine.py"])
@pytest.mark.parametrize("option", ["", "--json", "--save-plan"])
@pytest.mark.parametrize("storage", ["sqlite:///", "journal:"])
def test_what_a_search_lives_on_is_no_place_for_its_output(
    cli: Cli, small: Path, storage: str, option: str, file: str
) -> None:
    """A storage need not be there yet, and may have the name of the model's data."""
    Path("mine.py").write_text("def f(model): return 1.0\n")
    study, owner = ("study.onnx", "the metric") if file == "mine.py" else (file, "the study's storage")
    places = ["out.onnx", option, file] if option else [file.removesuffix(".data")]
    given = ("--macs", 0.5, "--trials", 1, "--storage", f"{storage}{study}", "--metric", "mine.py:f")
    with untouched(small.parent):
        refused = cli("search", "in.onnx", *places, *given).refusal()
    assert f"{file} belongs to {owner}, and is never overwritten" in refused


@pytest.mark.parametrize("output", ["nowhere/out.onnx", "in.onnx/out.onnx", "folder", ".", "", "x" * 300])
def test_an_output_that_cannot_be_is_refused(cli: Cli, small: Path, output: str) -> None:
    Path("folder").mkdir()
    with untouched(small.parent):
        assert output[:100] in cli("rewrite", "in.onnx", output, *RANK).refusal()


@pytest.mark.parametrize(
    "places",
    [
        ("--json", "out.onnx"),
        ("--save-plan", "out.onnx"),
        ("--save-plan", "report.json", "--json", "report.json"),
        ("--save-plan", "report.json", "--json", "folder/../report.json"),
    ],
)
def test_two_outputs_in_one_place_are_refused(cli: Cli, small: Path, places: tuple[str, ...]) -> None:
    """The later one would take the earlier one away."""
    Path("folder").mkdir()
    with untouched(small.parent):
        assert places[1] in cli("rewrite", "in.onnx", "out.onnx", *RANK, *places).refusal()


def test_a_pipe_is_not_replaced_by_a_file(cli: Cli, small: Path) -> None:
    """Nor is a device: root would destroy /dev/null so."""
    os.mkfifo("pipe")
    with untouched(small.parent):
        assert "pipe" in cli("rewrite", "in.onnx", "pipe", *RANK).refusal()


def test_a_report_to_a_file_behind_standard_output_leaves_the_link(small: Path) -> None:
    """/dev/stdout is a link to whatever file the shell sends the output to."""
    Path("stdout").symlink_to("/proc/self/fd/1")
    with Path("shown.txt").open("w") as shown:
        subprocess.run(command("inspect", "in.onnx", "--json", "stdout"), stdout=shown, check=True)
    assert Path("stdout").is_symlink()
    assert '"sites"' in Path("shown.txt").read_text()


def test_a_model_never_takes_the_place_of_such_a_link(small: Path) -> None:
    Path("stdout").symlink_to("/proc/self/fd/1")
    with Path("shown.txt").open("w") as shown:
        done = subprocess.run(
            command("rewrite", "in.onnx", "stdout", *RANK), stdout=shown, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and "no regular file" in done.stderr
    assert Path("stdout").is_symlink() and not Path("shown.txt").read_text()


# Storage that fails
# ------------------


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    ("external", "place"),
    [*itertools.product([False, True], ["mkdtemp", "fsync", "replace"]), (True, "second fsync")],
)
def test_a_failing_write_leaves_nothing(
    cli: Cli, small: Path, monkeypatch: pytest.MonkeyPatch, external: bool, place: str, number: int
) -> None:
    """The folder refuses, the disk is full while the file is written, or when it is moved into place."""
    if external:
        save_external(small_model(), small)
    calls = 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if place != "second fsync" or calls == 2:
            raise fail(number)

    owner: Any = {"mkdtemp": "tempfile.mkdtemp", "replace": "pathlib.Path.replace"}.get(place, "os.fsync")
    monkeypatch.setattr(owner, failing)
    with untouched(small.parent):
        message = cli("rewrite", "in.onnx", "out.onnx", *RANK, "--no-check").refusal()
    assert os.strerror(number) in message and "nothing was written" in message


def test_a_folder_that_cannot_be_synchronised_does_not_matter(
    cli: Cli, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse to synchronise folders: the output stands by then."""
    synchronise = os.fsync

    def files_only(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise fail(errno.EINVAL)
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    with untouched(small.parent, "out.onnx"):
        assert cli("rewrite", "in.onnx", "out.onnx", *RANK).code == 0


def test_a_report_that_cannot_be_written_keeps_the_model_back(cli: Cli, small: Path) -> None:
    Path("full").symlink_to("/dev/full")
    with untouched(small.parent):
        for option in ("--json", "--save-plan"):
            message = cli("rewrite", "in.onnx", "out.onnx", *RANK, option, "full").refusal()
            assert os.strerror(errno.ENOSPC) in message


def test_a_report_may_go_to_a_device(cli: Cli, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but root can write the folder of /dev/null."""
    Path("null").symlink_to("/dev/null")
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    with untouched(small.parent):
        assert cli("inspect", "in.onnx", "--json", "null").code == 0


def mounted(script: str, *arguments: object) -> Outcome:
    """Run a shell script that may mount file systems, which vanish with it; skips where that is forbidden."""
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if shutil.which("unshare") is None or spawn(*unshare, "mount", "-t", "tmpfs", "none", "/mnt").code:
        pytest.skip("mounting a file system is not permitted here")
    return spawn(*unshare, "sh", "-c", script, "sh", *arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts and limits as Linux has them")
@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("mount -t tmpfs -o size=256k none full", "No space left on device; nothing was written; free some"),
        ("mount --bind full full && mount -o remount,bind,ro full", "ead-only"),
        ("ulimit -f 100", "File too large; nothing was written"),
    ],
    ids=["full", "read-only", "limited"],
)
@pytest.mark.parametrize("external", [False, True])
def test_real_storage_that_fails(tmp_path: Path, limit: str, says: str, external: bool) -> None:
    model = nets.model(SMALL.replace("16,", "256,").replace("32,", "256,"), b=nets.signal(256))
    model.graph.initializer.append(onnx.numpy_helper.from_array(nets.weight(256, 256, 3, 3), "w"))
    (save_external if external else save)(model, tmp_path / "in.onnx")
    Path("full").mkdir()
    arguments = ["rewrite", "in.onnx", "full/out.onnx", "--rank", "0.5", "--no-check"]
    with untouched(tmp_path):
        outcome = mounted(f'{limit}; "$@"; code=$?; ls -A full; exit $code', *command(*arguments))
    assert says in outcome.refusal()
    assert "full" not in outcome.out.split("\n")[-2:] and not outcome.out.endswith("out.onnx\n")


FITTED = {
    "rewrite": ("rewrite", "in.onnx", "full/out.onnx", *RANK),
    "search": ("search", "in.onnx", "full/out.onnx", "--macs", "0.5", "--cost", "macs"),
}


@pytest.fixture
def samples(
    small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ...]:
    """Beside the small model, samples whose activations take half a megabyte."""
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path_factory.mktemp("cache")))
    np.savez("samples.npz", x=nets.signal(64, 16, 8, 8))
    return ("--data", "samples.npz", "--samples", "48")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts and limits as Linux has them")
@pytest.mark.parametrize("size", ["4k", "64k", "300k"])
@pytest.mark.parametrize("name", FITTED)
def test_a_disk_that_is_full_while_factors_are_fitted(
    small: Path, samples: tuple[str, ...], name: str, size: str
) -> None:
    """Whatever the first file is that it cannot take."""
    Path("full").mkdir()
    script = f'mount -t tmpfs -o size={size} none full; "$@"; code=$?; ls -A full; exit $code'
    with untouched(small.parent):
        outcome = mounted(script, *command(*FITTED[name], *samples))
    assert "cannot write full" in outcome.refusal() and os.strerror(errno.ENOSPC) in outcome.refusal()
    assert not outcome.out


@pytest.mark.parametrize("place", ["tempfile.mkdtemp", "numpy.save", "numpy.savez", "os.fsync"])
def test_scratch_files_of_a_study_that_cannot_be_written(
    cli: Cli, small: Path, samples: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """NumPy raises some errors without a number."""
    pytest.importorskip("optuna")
    Path("full").mkdir()

    def failing(*arguments: Any, **options: Any) -> None:
        raise OSError("10752 requested and 5088 written")

    monkeypatch.setattr(place, failing)
    with untouched(small.parent):
        message = cli(*FITTED["search"], *samples, "--trials", "1").refusal()
    assert "cannot write full" in message and "10752 requested and 5088 written" in message


def test_where_no_folder_will_do_for_temporary_files(
    cli: Cli, small: Path, samples: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", failing)
    with untouched(small.parent):
        message = cli("rewrite", "in.onnx", "--dry-run", *RANK, *samples).refusal()
    assert "cannot write temporary files: No usable temporary directory" in message
