"""Which process is at work on a trial, and whether it is no more."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")
_STARTED = 19  # of the fields behind a process's name in its stat, proc_pid_stat(5)


def this_worker() -> dict[str, object]:
    """The process that asks, as JSON values; None for what the system does not tell.

    A number names a process only within one boot of one machine and one namespace of numbers, and only until
    it is given to the next: containers often share their host's name.
    """
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), **_place()}


def is_dead(worker: object) -> bool:
    """Whether a process that `this_worker` named is surely no more.

    False where it cannot be seen from here, or not be told from others: then its silence must tell.
    """
    place = _place()
    if not isinstance(worker, dict) or None in place.values():
        return False
    if {name: worker.get(name) for name in place} != place or not isinstance(worker.get("pid"), int):
        return False
    return _started(worker["pid"]) != worker.get("started")


def _place() -> dict[str, str | None]:
    """What one process number can be told from others by."""
    try:
        return {"boot": _BOOT.read_text().strip(), "namespace": os.readlink(_NAMESPACE)}  # noqa: PTH115
    except OSError:
        return {"boot": None, "namespace": None}


def _started(pid: int) -> str | None:
    """When a process began, in ticks since boot; None where there is none, or only its remains."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[_STARTED - 1]
