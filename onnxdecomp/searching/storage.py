"""Where studies lie: databases and journals that Optuna opens, and one line on whatever is wrong there."""

from __future__ import annotations

import importlib
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxdecomp.errors import MissingExtraError, UsageError, first_line

_HEARTBEAT_S, _GRACE_S = 30, 120
_LOCK_S = 60  # how long one process waits for another to leave an SQLite file


def require_storage(storage: str | None) -> None:
    """Refuse a storage that cannot be used, before any work is done.

    Raises:
        MissingExtraError: Optuna is not installed.
        UsageError: the storage cannot be opened.
    """
    with open_storage(storage):
        return


def load_optuna() -> Any:
    """The optuna module.

    Raises:
        MissingExtraError: not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise MissingExtraError('optuna is not installed: pip install "onnxdecomp[search]"') from error


@contextmanager
def open_storage(line: str | None) -> Iterator[Any]:
    """The storage, closed afterwards; what goes wrong with it on the way is one line that names it."""
    optuna = load_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that fails is raised, not logged
    try:
        if line is None:
            yield optuna.storages.InMemoryStorage()
        elif line.startswith("journal:"):
            yield _journal(line)
        elif "://" in line:
            with _named(line):
                database = _database(line)
                try:
                    yield database
                finally:
                    database.remove_session()
                    database.engine.dispose()
        else:
            raise UsageError(
                f"`storage` {line}: give a database's URL, as sqlite:///study.db, or journal:study.log"
            )
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _named(line: str) -> Iterator[None]:
    optuna, alchemy = load_optuna(), importlib.import_module("sqlalchemy.exc")
    shown = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", line)  # passwords are not to be shown
    try:
        yield
    except alchemy.NoSuchModuleError as error:
        raise UsageError(f"`storage` {shown}: no such kind of database is known") from error
    except alchemy.ArgumentError as error:
        raise UsageError(f"`storage` {shown}: this is not a database's URL") from error
    except optuna.exceptions.StorageInternalError as error:
        raise UsageError(f"`storage` {shown}: {first_line(error.__cause__ or error)}") from error
    except alchemy.SQLAlchemyError as error:
        raise UsageError(f"`storage` {shown}: {first_line(error)}") from error


def _database(line: str) -> Any:
    optuna, alchemy = load_optuna(), importlib.import_module("sqlalchemy.exc")
    connect = {"connect_args": {"timeout": _LOCK_S}} if line.startswith("sqlite") else {}
    for attempt in range(10):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.storages.RDBStorage(
                    line, engine_kwargs=connect, heartbeat_interval=_HEARTBEAT_S, grace_period=_GRACE_S
                )
        except ImportError as error:
            scheme = line.split("://")[0]
            raise UsageError(f"`storage` {scheme}://…: its Python driver is not installed") from error
        except RuntimeError as error:
            raise UsageError(f"`storage`: {first_line(error)}") from error
        except (alchemy.OperationalError, alchemy.IntegrityError, alchemy.ProgrammingError) as error:
            # Another process may be creating the same tables.
            if attempt == 9 or not re.search("exist|unique|duplicate", str(error), re.IGNORECASE):
                raise
            time.sleep(0.2)
    raise AssertionError


def _journal(line: str) -> Any:
    journal = importlib.import_module("optuna.storages.journal")
    # Absolute, and with a lock that is a file: the other kind, a link, is never freed if its target is amiss.
    path = Path(line.removeprefix("journal:")).absolute()
    try:
        if path.exists():
            with path.open("rb") as file:
                if file.read(10) not in (b"", b'{"op_code"'):
                    raise UsageError(f"{path.name} is not a journal of Optuna's")
        lock = journal.JournalFileOpenLock(str(path))
        return load_optuna().storages.JournalStorage(journal.JournalFileBackend(str(path), lock_obj=lock))
    except (OSError, UsageError) as error:
        raise UsageError(f"`storage` {line}: {first_line(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"`storage` {line}: the journal is damaged ({first_line(error)})") from error
