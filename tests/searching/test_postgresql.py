"""A study in a real PostgreSQL server, which the test starts in a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_search import SMALL, data, model
from test_search_study import KILLED

from onnxdecomp.searching import read_trials

pytestmark = pytest.mark.heavy
__all__ = ["data", "model"]  # fixtures
DRIVERS = ("psycopg", "psycopg2")


def program(name: str) -> Path | None:
    places = [shutil.which(name), *sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)]
    return next((Path(place) for place in places if place), None)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a database on a server that is gone afterwards, but for the driver."""
    initdb, postgres = program("initdb"), program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no PostgreSQL server is installed (initdb, postgres)")
    if not any(map(importlib.util.find_spec, DRIVERS)):
        pytest.skip(f"no driver for PostgreSQL is installed ({' or '.join(DRIVERS)})")
    # The server refuses to run as root; whoever runs it owns its folder.
    user = None if os.geteuid() else "nobody"
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        if user is not None:
            shutil.chown(folder, user)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        store = Path(folder) / "data"
        command = [initdb, "-D", store, "-U", "tester", "--auth=trust", "--no-sync"]
        done = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"initdb fails here: {done.stderr.strip().splitlines()[-1]}")
        options = ["-D", store, "-k", folder, "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        with subprocess.Popen([postgres, *options], user=user, cwd=folder, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            assert any(b"ready to accept connections" in line for line in process.stderr)
            yield f"tester@127.0.0.1:{port}/postgres"
            process.send_signal(signal.SIGINT)  # a fast shutdown
            process.communicate()


# As in test_search_study: the first is slow, and killed in its second trial; the others join it meanwhile.
SLOW = KILLED.replace("    return judge", "    import time; time.sleep(4)\n    return judge")
WORKER = KILLED.replace("    left -= 1\n", "    import time; time.sleep(0.4)\n")


def start(script: str, *words: object) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    places = os.pathsep.join(map(str, (here.parent, here.parents[1])))
    return subprocess.Popen(
        [sys.executable, "-c", script, str(here), *map(str, words)],
        env=os.environ | {"PYTHONPATH": places}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("goal", [("--speedup", 1.6), ("--max-error", 0.15)])
def test_processes_share_a_study_and_one_is_killed(
    goal: tuple[object, ...], driver: str, server: str, model: Path, data: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(driver) is None:
        pytest.skip(f"{driver} is not installed")
    storage, name = f"postgresql+{driver}://{server}", f"{driver} {goal[0]}"
    outs = [tmp_path / f"{number}.onnx" for number in range(3)]

    def words(out: Path) -> list[object]:
        return ["search", model, out, *goal, "--data", data, *SMALL, "--best-effort", "--trials", 40,
                "--storage", storage, "--study", name]  # fmt: skip

    workers = [start(script, *words(out)) for script, out in zip((SLOW, WORKER, WORKER), outs, strict=True)]
    told = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [-signal.SIGKILL, 0, 0], told
    again = start(WORKER, *words(outs[0]))
    assert again.communicate() and again.returncode == 0
    onnx.checker.check_model(onnx.load(outs[0]))
    assert len({out.read_bytes() for out in outs}) == 1
    states = [trial.state for trial in read_trials(storage, name)]
    assert 40 <= sum(map(states.count, ("complete", "pruned"))) <= 42 and states.count("fail") == 1


def test_a_server_that_goes_away_is_one_line(server: str, model: Path, data: Path, tmp_path: Path) -> None:
    """And no password is in it."""
    address = server.rpartition(":")[0].replace("tester@", "tester:secret@")
    words = ("search", model, tmp_path / "out.onnx", "--macs", 0.5, "--data", data, "--trials", 2)
    worker = start(WORKER, *words, "--storage", f"postgresql+{driver()}://{address}:1/postgres")
    _, told = worker.communicate()
    assert worker.returncode == 2 and told.count("\n") == 1, told
    assert "--storage postgresql" in told and "secret" not in told


def driver() -> str:
    return next(name for name in DRIVERS if importlib.util.find_spec(name) is not None)


def test_the_example_of_a_shared_study(server: str, model: Path, data: Path, tmp_path: Path) -> None:
    """Two workers, without a warning."""
    script = Path(__file__).parents[2] / "examples" / "shared_study.py"
    np.savez(tmp_path / "inputs.npz", x=np.load(data)["x"])
    outs = [tmp_path / f"{number}.onnx" for number in range(2)]
    storage = f"postgresql+{driver()}://{server}"
    commands = [
        [sys.executable, "-W", "error", script, model, tmp_path / "inputs.npz", out, storage, "--trials", "6"]
        for out in outs
    ]
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    told = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    assert all("wrote" in out and not err for out, err in told), told
    assert outs[0].read_bytes() == outs[1].read_bytes()
