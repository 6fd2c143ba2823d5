"""Models with external data: every layout goes in, one data file comes out, little memory is needed."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nets
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import (
    Cli,
    Outcome,
    command,
    digest,
    external_entry,
    save,
    save_external,
    small_model,
    spawn,
    tree,
    untouched,
)
from nets import rewrite
from onnx import ModelProto, TensorProto, numpy_helper

from onnxdecomp import ModelError, find_sites
from onnxdecomp.ir import all_tensors, is_external

RANK = ("--rank", "0.25", "--min-channels", "8")
# Weights as an initialiser, a Constant, an initialiser of a subgraph, and a Constant there.
EVERYWHERE = """
everywhere (float[1,16,8,8] x, bool c) => (float[1,16,8,8] y) <float[1,16,8,8] a> {
  [first] p = Conv <pads=[1,1,1,1]> (x, w, b)
  k = Constant <value = float[16] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> ()
  [second] q = Conv <pads=[1,1,1,1]> (p, v, k)
  [choice] y = If (c) <
    then_branch = yes () => (float[1,16,8,8] r) {
      [inner] r = Conv <pads=[1,1,1,1]> (q, u)
    },
    else_branch = no () => (float[1,16,8,8] s) { s = Relu (q) }
  >
}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    for data in tmp_path.rglob("*.data"):  # pytest keeps the folders of its last runs
        if data.is_file() and data.stat().st_size > 10**7:
            data.unlink()


def everywhere() -> ModelProto:
    """A model with weights in an initialiser, in a Constant, and in a subgraph."""
    weights = {name: nets.weight(16, 16, 3, 3, seed=i) for i, name in enumerate("wvu")}
    model = nets.model(EVERYWHERE, w=weights["w"], b=nets.signal(16))
    constant = onnx.helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(weights["v"], "v"))
    model.graph.node.insert(0, constant)
    branch = nets.inner_graph(model, 4, "then_branch")
    branch.initializer.append(numpy_helper.from_array(weights["u"], "u"))
    return model


def values(path: Path) -> ModelProto:
    """The model with its data inside, as values rather than bytes: two of these can be compared."""
    model = onnx.load(path)
    for tensor in all_tensors(model):
        array, name = numpy_helper.to_array(tensor), tensor.name
        tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


LAYOUTS: dict[str, Callable[[ModelProto, Path], Path]] = {
    "one file": save_external,
    "a file per tensor": lambda m, p: save_external(m, p, all_tensors_to_one_file=False, location=None),
    "initialisers only": lambda m, p: save_external(m, p, convert_attribute=False),
    "large tensors only": lambda m, p: save_external(m, p, size_threshold=1000),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_is_that_of_the_model_with_its_data_inside(cli: Cli, tmp_path: Path, layout: str) -> None:
    for folder in ("in", "out"):
        Path(folder).mkdir()
    LAYOUTS[layout](everywhere(), tmp_path / "in/in.onnx")
    save(everywhere(), tmp_path / "inside.onnx")
    with untouched(tmp_path, "out/out.onnx", "out/out.onnx.data", "expected.onnx"):
        assert "check passed" in cli("rewrite", "in/in.onnx", "out/out.onnx", *RANK).out
        assert cli("rewrite", "inside.onnx", "expected.onnx", *RANK).code == 0
    assert values(Path("out/out.onnx")) == values(Path("expected.onnx"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_output_runs_wherever_it_is_moved(
    cli: Cli, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data lie in one file beside it, and no path leads back to the input or the working directory."""
    Path("in").mkdir()
    LAYOUTS[layout](everywhere(), tmp_path / "in/in.onnx")
    cli("rewrite", "in/in.onnx", "out.onnx", *RANK)
    shutil.rmtree("in")
    Path("elsewhere/empty").mkdir(parents=True)
    for name in ("out.onnx", "out.onnx.data"):
        Path(name).rename(Path("elsewhere") / name)
    monkeypatch.chdir("elsewhere/empty")
    moved = tmp_path / "elsewhere/out.onnx"
    session = onnxruntime.InferenceSession(moved, providers=["CPUExecutionProvider"])
    feeds = {"x": nets.signal(1, 16, 8, 8), "c": np.array(True)}
    assert np.isfinite(session.run(["y"], feeds)[0]).all()
    for tensor in all_tensors(onnx.load(moved, load_external_data=False)):
        assert not is_external(tensor) or external_entry(tensor)["location"] == "out.onnx.data"


def test_factors_of_external_weights_are_external(cli: Cli, tmp_path: Path) -> None:
    save_external(small_model(), tmp_path / "in.onnx", size_threshold=1000)
    cli("rewrite", "in.onnx", "out.onnx", *RANK)
    stored = {
        t.name: is_external(t) for t in onnx.load("out.onnx", load_external_data=False).graph.initializer
    }
    factors = [f"conv/tucker_{role}.weight" for role in ("in", "core", "out")]
    assert stored == dict.fromkeys(factors, True) | {"b": False}
    assert Path("out.onnx.data").stat().st_size < Path("in.onnx.data").stat().st_size


def test_a_scratch_folder_goes_with_its_model(tmp_path: Path) -> None:
    """Also where the output is saved twice, and where it never is."""
    path = save_external(small_model(), tmp_path / "in.onnx")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    result = rewrite(path, 0.25, scratch=scratch)
    assert list(scratch.iterdir())
    for name in ("one.onnx", "two.onnx"):
        result.save(name)
    assert values(Path("one.onnx")) == values(Path("two.onnx"))
    del result
    assert not list(scratch.iterdir())


def test_tensors_that_share_their_bytes_go_on_sharing_them(cli: Cli, tmp_path: Path) -> None:
    model = small_model(
        "shared (float[1,16,8,8] x) => (float[1,16,8,8] y) {"
        "[conv] h = Conv <pads=[1,1,1,1]> (x, w) a = Add (h, b) y = Mul (a, d) }",
        w=nets.weight(16, 16, 3, 3),
        b=nets.signal(16, 8, 8),
        d=nets.signal(16, 8, 8),
    )
    path = save_external(model, tmp_path / "in.onnx")
    shared = onnx.load(path, load_external_data=False)
    own = {tensor.name: tensor for tensor in shared.graph.initializer}
    del own["d"].external_data[:]
    own["d"].external_data.extend(own["b"].external_data)
    save(shared, path)
    cli("rewrite", "in.onnx", "out.onnx", *RANK)
    written = onnx.load("out.onnx", load_external_data=False).graph.initializer
    entries = {tensor.name: external_entry(tensor) for tensor in written}
    assert entries["b"] == entries["d"]
    others = [int(entry["offset"]) for name, entry in entries.items() if name not in ("b", "d")]
    assert len({*others, int(entries["b"]["offset"])}) == len(entries) - 1
    assert values(Path("out.onnx")).graph.initializer[-1] == values(path).graph.initializer[-1]


def test_large_tensors_can_be_mapped_into_memory(cli: Cli, tmp_path: Path) -> None:
    """Their offsets are multiples of 64 KiB, what Windows maps by (onnx/docs/ExternalData.md)."""
    text = (
        "big (float[1,16,8,8] x) => (float[1,32,8,8] y) { h = Conv <pads=[1,1,1,1]> (x, w) y = Add (h, b) }"
    )
    ballast = {f"b{i}": nets.signal(300_000 + i) for i in range(2)}
    model = small_model(text, b=np.float32(1))
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in ballast.items())
    save_external(model, tmp_path / "in.onnx")
    cli("rewrite", "in.onnx", "out.onnx", *RANK)
    written = {t.name: t for t in onnx.load("out.onnx", load_external_data=False).graph.initializer}
    assert {int(external_entry(written[name])["offset"]) % 65536 for name in ballast} == {0}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_plan_keeps_every_value(cli: Cli, tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](everywhere(), tmp_path / "in.onnx")
    Path("plan.json").write_text('{"version": 1, "sites": {}}')
    assert cli("rewrite", "in.onnx", "out.onnx", "--plan", "plan.json").code == 0
    assert values(Path("out.onnx")) == values(Path("in.onnx")) == values_of(everywhere())
    own = onnx.load("out.onnx", load_external_data=False)
    before = onnx.load("in.onnx", load_external_data=False)
    assert [*map(is_external, all_tensors(own))] == [*map(is_external, all_tensors(before))]


def values_of(model: ModelProto) -> ModelProto:
    path = save(model, Path("values.onnx"))
    return values(path)


# Damaged and dangerous data
# --------------------------


def entry(key: str, value: str | None) -> Callable[[TensorProto], None]:
    def edit(tensor: TensorProto) -> None:
        kept = {k: v for k, v in external_entry(tensor).items() if k != key}
        del tensor.external_data[:]
        for k, v in (kept | ({key: value} if value is not None else {})).items():
            tensor.external_data.add(key=k, value=v)

    return edit


DAMAGED = {
    "offset of letters": (entry("offset", "abc"), "damaged"),
    "offset in hexadecimal": (entry("offset", "0x0"), "damaged"),
    "negative offset": (entry("offset", "-4"), "in.onnx.data"),
    "offset behind the end": (entry("offset", "99999999"), "truncated"),
    "astronomic offset": (entry("offset", str(2**70)), "truncated"),
    "length of letters": (entry("length", "abc"), "damaged"),
    "negative length": (entry("length", "-1"), "in.onnx.data"),
    "length too small": (entry("length", "100"), "'w'"),
    "length of nothing": (entry("length", "0"), "'w'"),
    "length too large": (entry("length", "999999"), "'w'"),
    "no location": (entry("location", None), "no location"),
    "empty location": (entry("location", ""), "no location"),
    "location is the folder": (entry("location", "."), "missing"),
    "location with a zero byte": (entry("location", "in.onnx.data\0"), "'w'"),
    "location of 300 letters": (entry("location", "x" * 300), "'w'"),
    "no such file": (entry("location", "other.data"), "missing"),
    "a folder above": (entry("location", "../in.onnx.data"), "outside the model's folder; refused"),
    "a folder above, detour": (entry("location", "sub/../../in.onnx.data"), "outside the model's folder"),
    "a folder above, on Windows": (entry("location", "..\\in.onnx.data"), "outside the model's folder"),
    "absolute": (entry("location", "/etc/passwd"), "outside the model's folder; refused"),
    "a device": (entry("location", "/dev/zero"), "outside the model's folder; refused"),
    "no element type": (lambda tensor: setattr(tensor, "data_type", 99), "99"),
    "negative dimension": (lambda tensor: tensor.dims.__setitem__(0, -32), "'w'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_external_data_are_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    edit, says = DAMAGED[name]
    path = save_external(small_model(), tmp_path / "in.onnx")
    model = onnx.load(path, load_external_data=False)
    edit(model.graph.initializer[0])
    save(model, path)
    with untouched(tmp_path):
        for arguments in (["inspect", path], ["compare", path, path], ["rewrite", path, "out.onnx", *RANK]):
            assert says in cli(*arguments).refusal()
        assert says in cli("rewrite", path, "out.onnx", *RANK, "--no-check").refusal()


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("how", ["missing", "too short", "link outside", "link to itself", "folder"])
def test_data_that_are_not_there_are_refused(cli: Cli, tmp_path: Path, how: str, second: bool) -> None:
    """Also in the second model of a comparison: what it points at is read just the same."""
    Path("models").mkdir()
    path = save_external(small_model(), tmp_path / "models/in.onnx")
    data = tmp_path / "models/in.onnx.data"
    whole = data.read_bytes()
    data.unlink()
    if how == "too short":
        data.write_bytes(whole[:1000])
    elif how == "link outside":
        Path("outside.data").write_bytes(whole)
        data.symlink_to("../outside.data")
    elif how == "link to itself":
        data.symlink_to(data.name)
    elif how == "folder":
        data.mkdir()
    good = save(small_model(), tmp_path / "good.onnx")
    with untouched(tmp_path):
        arguments = ["compare", good, path] if second else ["rewrite", path, "out.onnx", *RANK]
        assert "external data 'in.onnx.data' of tensor 'w'" in cli(*arguments).refusal()


def test_a_download_cache_of_links_works(cli: Cli, tmp_path: Path) -> None:
    """As HuggingFace's: snapshots/REVISION/NAME is a link to blobs/DIGEST, for the model and its data."""
    made = save_external(small_model(), tmp_path / "in.onnx")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, path in enumerate((made, made.with_name("in.onnx.data"))):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    with untouched(tmp_path, "out.onnx", "out.onnx.data"):
        assert "check passed" in cli("rewrite", snapshot / "in.onnx", "out.onnx", *RANK).out
    (snapshot / "in.onnx").unlink()
    (snapshot / "in.onnx").write_bytes((blobs / "0").read_bytes())
    with pytest.raises(ModelError, match="through a link; refused"):
        find_sites(snapshot / "in.onnx")


# Large models
# ------------


def bulky(path: Path, megabytes: int, tensors: int) -> Path:
    """The small model with so much ballast outside, in a file that is mostly holes."""
    save_external(small_model(), path)
    model = onnx.load(path, load_external_data=False)
    step = megabytes * 10**6 // tensors
    for i in range(tensors):
        tensor = model.graph.initializer.add(name=f"ballast{i}", data_type=1, dims=[step // 4])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "ballast.data"), ("offset", i * step), ("length", step)):
            tensor.external_data.add(key=key, value=str(value))
    with path.with_name("ballast.data").open("wb") as stream:
        stream.truncate(step * tensors)
        stream.seek(-1000, 2)
        stream.write(bytes(range(250)) * 4)
    return save(model, path)


@dataclass(frozen=True, slots=True)
class Large:
    """A model of 120 MB and two outputs made from it in peace: model files, and digests of their data."""

    source: Path
    outputs: dict[str, tuple[bytes, str]]


def arguments(source: Path, rank: str = "0.25") -> list[str]:
    return command("rewrite", source, "out/out.onnx", "--rank", rank, "--no-check")


def beginning(words: list[str], code: str) -> list[str]:
    """The same Python program, `code` before it."""
    program, option, start, *rest = words
    assert option == "-c"
    return [program, option, f"{code}\n{start}", *rest]


# The system kills a process when a file of its grows beyond that.
AT_SIZE = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
"""
# Before the process does a thing to files in the output's scratch folder for the n-th time, it does another.
AT_STEP = """
import os, signal, sys
times = 0
def audit(event, arguments):
    global times
    if event == "{event}" and ".out.onnx." in str(arguments[0]):
        times += 1
        if times == {number}:
            {then}
sys.addaudithook(audit)
"""
DIE = "os.kill(os.getpid(), signal.SIGKILL)"
PIPES = ("stdin", "stdout", "stderr")
HALT = "print('halt', flush=True); sys.stdin.read()"


def written(folder: Path = Path("out")) -> tuple[bytes, str]:
    return (folder / "out.onnx").read_bytes(), digest(folder / "out.onnx.data")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Large]:
    folder = tmp_path_factory.mktemp("large")
    with contextlib.chdir(folder):
        source = bulky(folder / "in.onnx", 120, 6)
        outputs = {}
        for name, rank in (("new", "0.25"), ("old", "0.5")):
            shutil.rmtree("out", ignore_errors=True)
            Path("out").mkdir()
            subprocess.run(arguments(source, rank), check=True)
            outputs[name] = written()
    yield Large(source, outputs)
    shutil.rmtree(folder)


@pytest.mark.parametrize("older", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_a_kill_leaves_the_whole_output_or_none(large: Large, older: bool) -> None:
    """Killed at moments spread over the writing, the last of them as the files move into place."""
    before = tree(large.source.parent) if older else {}
    chooser = random.Random(older)
    left = []
    for quarter in range(4):
        if left[-1:] != ["old"]:
            shutil.rmtree("out", ignore_errors=True)
            shutil.copytree(large.source.parent / "out", "out") if older else Path("out").mkdir()
        if quarter < 3:
            moment = AT_SIZE.format(int(120e6 * (quarter + chooser.random()) / 3))
        else:
            moment = AT_STEP.format(event="os.rename", number=chooser.choice([1, 2]), then=DIE)
        killed = subprocess.run(beginning(arguments(large.source), moment))
        assert killed.returncode == -(signal.SIGXFSZ if quarter < 3 else signal.SIGKILL)
        left.append(whole_or_absent(large))
        for scratch in Path("out").glob(".*"):
            shutil.rmtree(scratch)
    assert {"absent", "old"}.intersection(left), "no kill came in time"
    assert older or "old" not in left
    assert not before or tree(large.source.parent) == before


def whole_or_absent(large: Large) -> str:
    if not Path("out/out.onnx").exists():
        return "absent"
    onnx.load("out/out.onnx")
    onnx.checker.check_model("out/out.onnx")
    return next(name for name, output in large.outputs.items() if output == written())


@pytest.mark.parametrize("older", [False, True])
def test_at_every_step_the_output_is_whole_or_absent(cli: Cli, tmp_path: Path, older: bool) -> None:
    """Whatever the moment of a crash, it falls between two steps that the system is asked for."""
    source = save_external(everywhere(), tmp_path / "in.onnx")
    seen: list[tuple[bytes | None, bytes | None]] = []

    def now() -> tuple[bytes | None, bytes | None]:
        files = (Path("out.onnx"), Path("out.onnx.data"))
        model, data = (path.read_bytes() if path.exists() else None for path in files)
        return model, data

    if older:
        cli("rewrite", source, "out.onnx", "--rank", "12", "--allow-slower")
    allowed = [now()]
    with watching(lambda: seen.append(now())):
        assert cli("rewrite", source, "out.onnx", *RANK).code == 0
    allowed.append(now())
    assert len(set(allowed)) == 2 and len(seen) > 5
    assert all(state in allowed for state in seen if state[0] is not None)


@contextlib.contextmanager
def watching(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` before every step in which this process opens, moves, makes or removes a file."""
    watchers.append(look)
    if len(watchers) == 1:
        sys.addaudithook(audit)
    yield
    watchers[-1] = lambda: None


# A hook cannot be taken off again, so it is put on once.
watchers: list[Callable[[], None]] = []


def audit(event: str, _: tuple[object, ...]) -> None:
    if event == "open" or event.startswith(("os.", "shutil.", "tempfile.")):
        look, watchers[-1] = watchers[-1], lambda: None  # looking opens files, too
        look()
        watchers[-1] = look


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, large: Large, number: signal.Signals) -> None:
    Path("out").mkdir()
    with untouched(tmp_path):
        # The data are written, the model is not yet.
        words = beginning(arguments(large.source), AT_STEP.format(event="open", number=3, then=HALT))
        with subprocess.Popen(words, **dict.fromkeys(PIPES, subprocess.PIPE), text=True) as process:
            assert process.stdout is not None and "halt\n" in process.stdout
            assert [path.name for path in Path("out").glob(".out.onnx.*/[!.]*")] == ["out.onnx.data"]
            process.send_signal(number)
            _, shown = process.communicate()
        Outcome(process.returncode, "", shown).refusal(128 + number)


PEAK = """
import atexit, pathlib, sys, onnxdecomp.cli
def peak(): return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
imported = peak()
atexit.register(lambda: print("needed", peak() - imported, "kB"))
onnxdecomp.cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("rank", ["0.25", pytest.param("plan", marks=pytest.mark.heavy)])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, rank: str) -> None:
    """600 MB of external data, and 16 MB at a time to copy them by."""
    bulky(tmp_path / "in.onnx", 600, 1)
    Path("plan.json").write_text('{"version": 1, "sites": {}}')
    how = ["--plan", "plan.json"] if rank == "plan" else ["--rank", rank]
    outcome = spawn(sys.executable, "-c", PEAK, "rewrite", "in.onnx", "out.onnx", *how, "--no-check")
    assert outcome.code == 0, outcome.err
    assert int(outcome.out.split("needed")[1].split()[0]) < 350_000
    assert Path("out.onnx.data").stat().st_size >= 600 * 10**6


@pytest.mark.heavy
def test_a_model_over_two_gigabytes(cli: Cli, tmp_path: Path) -> None:
    bulky(tmp_path / "in.onnx", 2300, 20)
    assert "check passed" in cli("rewrite", "in.onnx", "out.onnx", *RANK).out
    onnx.checker.check_model("out.onnx")
    with Path("out.onnx.data").open("rb") as stream:
        stream.seek(-1000, 2)
        assert stream.read() == bytes(range(250)) * 4


@pytest.mark.heavy
def test_a_model_in_memory_over_two_gigabytes(tmp_path: Path) -> None:
    """No protobuf holds so much: what is inside moves out."""
    model = small_model()
    for i in range(3):
        tensor = model.graph.initializer.add(name=f"ballast{i}", data_type=TensorProto.FLOAT)
        tensor.dims.append(200_000_000)
        tensor.raw_data = bytes([i]) * 800_000_000
    rewrite(model, 0.25).save("out.onnx")
    assert Path("out.onnx").stat().st_size < 100_000
    onnx.checker.check_model("out.onnx")
    entries = {
        t.name: external_entry(t) for t in onnx.load("out.onnx", load_external_data=False).graph.initializer
    }
    with Path("out.onnx.data").open("rb") as stream:
        for i in range(3):
            stream.seek(int(entries[f"ballast{i}"]["offset"]) + 799_999_999)
            assert stream.read(1) == bytes([i])
