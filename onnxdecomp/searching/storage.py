"""Where studies lie: databases and journals that Optuna opens, and one line on whatever is wrong there."""

from __future__ import annotations

import importlib
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxdecomp.errors import MissingExtraError, OnnxdecompError, StorageError, UsageError, first_line

# The line of a journal that no process is writing any more ends in this.
_END = b"\n"
# How often a process says that it is at work on a trial, and how long others wait to hear of it.
_HEARTBEAT_S, _GRACE_S = 30, 120
_LOCK_S = 60  # how long one process waits for another to leave an SQLite file
_USER = re.compile(r"://(.*)@")
_IN_MEMORY = re.compile(r"sqlite(\+\w+)?:/{2,3}(:memory:)?")
# The two drivers that each kind of database is reached by most often.
_DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "mysqldb")}


def load_optuna() -> Any:
    """The optuna module.

    Raises:
        MissingExtraError: not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise MissingExtraError('optuna is not installed: pip install "onnxdecomp[search]"') from error


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage that is open.

    Attributes:
        line: a database's URL, or journal:PATH; None for one in memory.
        optuna: as Optuna knows it.
    """

    line: str | None
    optuna: Any

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Whatever goes wrong inside is the storage's: a StorageError."""
        if self.line is None:
            yield
            return
        try:
            with _named(self.line):
                yield
        except OnnxdecompError:
            raise
        except Exception as error:
            # Where a storage fails, Optuna stumbles over itself; what really happened is at the root of it.
            raise StorageError(f"`storage` {_shown(self.line)}: {_told(_root(error), self.line)}") from error


def require_existing(line: str) -> None:
    """Refuse a storage in a file that is not there; opening it would make one.

    Raises:
        StorageError: there is no such file.
    """
    path = storage_file(line)
    try:
        if path is None or path.is_file():
            return
        what = "this is a folder" if path.is_dir() else "no such file"
    except OSError as error:  # a name that no file can have
        raise StorageError(f"`storage` {_shown(line)}: {error.strerror}") from error
    raise StorageError(f"`storage` {_shown(line)}: {what}")


def storage_file(line: str) -> Path | None:
    """The file that a storage lies in; None for a server's."""
    kind, _, path = line.partition(":///" if line.startswith("sqlite") else ":")
    return Path(path.partition("?")[0]) if kind == "journal" or kind.startswith("sqlite") else None


@contextmanager
def open_storage(line: str | None) -> Iterator[Storage]:
    """The storage, closed afterwards.

    Args:
        line: a database's URL, or journal:PATH; None is a storage in memory.

    Raises:
        MissingExtraError: Optuna is not installed.
        StorageError: the storage cannot be opened.
    """
    optuna = load_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that fails is raised, not logged
    try:
        if line is None:
            yield Storage(line, optuna.storages.InMemoryStorage())
        elif line.startswith("journal:"):
            yield Storage(line, _journal(line))
        elif "://" in line:
            _require_address(line)
            with _named(line):
                database = _database(line)
            try:
                yield Storage(line, database)
            finally:
                # What failed before has been told; there is nothing left to lose.
                with suppress(importlib.import_module("sqlalchemy.exc").SQLAlchemyError):
                    database.remove_session()
                    database.engine.dispose()
        else:
            raise StorageError(
                f"`storage` {_shown(line)}: give a database's URL, as sqlite:///study.db, "
                "or journal:study.log"
            )
    finally:
        optuna.logging.set_verbosity(before)


# Databases
# ---------


def _require_address(line: str) -> None:
    """Refuse a URL that nothing could be kept at, or that cannot be told from its password."""
    if _IN_MEMORY.fullmatch(line):
        raise StorageError(f"`storage` {line}: this keeps nothing; name a file, as sqlite:///study.db")
    user = _USER.search(line)
    if user and ("@" in user[1] or "/" in user[1] or user[1].count(":") > 1):
        raise StorageError(
            f"`storage` {_scheme(line)}://…: write @, : and / of a user or password as %40, %3A and %2F"
        )


def _scheme(line: str) -> str:
    return line.split("://")[0]


def _shown(line: str) -> str:
    """The line without passwords, whether it is a URL or was meant to be one."""
    kind, separator, rest = line.rpartition("://")
    rest = re.sub(r":.*@", ":***@", rest)
    rest = re.sub(r"\?.*(passw|secret|token).*", "?***", rest, flags=re.IGNORECASE)
    return f"{kind}{separator}{rest}"


def _secrets(line: str) -> list[str]:
    """What a message about the URL must not repeat."""
    user = _USER.search(line)
    found = [user[1].partition(":")[2]] if user else []
    return [each for each in (*found, *re.findall(r"passw(?:or)?d=([^&]*)", line, re.IGNORECASE)) if each]


def _root(error: BaseException) -> BaseException:
    """The first of the errors that followed from each other."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _told(error: BaseException, line: str) -> str:
    """What a driver says, in one line that repeats no password; short ones could stand in any word."""
    text = getattr(error, "strerror", None) or first_line(error)
    secrets = _secrets(line)
    return type(error).__name__ if any(secret in text for secret in secrets) else text


@contextmanager
def _named(line: str) -> Iterator[None]:
    optuna, alchemy = load_optuna(), importlib.import_module("sqlalchemy.exc")
    what = f"`storage` {_shown(line)}"
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}") from error
    except alchemy.NoSuchModuleError as error:
        raise StorageError(f"{what}: no such kind of database is known") from error
    except alchemy.ArgumentError as error:
        raise StorageError(f"{what}: this is not a database's URL") from error
    except optuna.exceptions.StorageInternalError as error:
        raise StorageError(f"{what}: {_told(error.__cause__ or error, line)}") from error
    except alchemy.SQLAlchemyError as error:
        raise StorageError(f"{what}: {_told(error, line)}") from error


def _database(line: str) -> Any:
    optuna, alchemy = load_optuna(), importlib.import_module("sqlalchemy.exc")
    # A connection is tried before it is used: between two trials a server may have closed it.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if line.startswith("sqlite"):
        options["connect_args"] = {"timeout": _LOCK_S}
    # An attempt that fails must leave no connection behind, so the first that succeeds keeps none either.
    unpooled = {**options, "poolclass": importlib.import_module("sqlalchemy.pool").NullPool}
    for attempt in range(10):
        try:
            optuna.storages.RDBStorage(line, engine_kwargs=unpooled).remove_session()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return importlib.import_module("onnxdecomp.searching.database").Database(
                    line, engine_kwargs=options, heartbeat_interval=_HEARTBEAT_S, grace_period=_GRACE_S
                )
        except ImportError as error:
            raise StorageError(_missing_driver(line, error)) from error
        except RuntimeError as error:
            raise StorageError(f"`storage` {_shown(line)}: {_told(error, line)}") from error
        except ValueError as error:
            # SQLAlchemy repeats what it takes for a port, which may be a part of the password.
            raise StorageError(
                f"`storage` {_scheme(line)}://…: this is not a database's URL; write "
                "KIND+DRIVER://USER:PASSWORD@HOST:PORT/NAME"
            ) from error
        except (alchemy.OperationalError, alchemy.IntegrityError, alchemy.ProgrammingError) as error:
            # Another process may be creating the same tables.
            if attempt == 9 or not re.search("exist|unique|duplicate", str(error), re.IGNORECASE):
                raise
            time.sleep(0.2)
    raise AssertionError


def _missing_driver(line: str, error: ImportError) -> str:
    cause = error.__cause__
    module = cause.name if isinstance(cause, ImportError) and cause.name else "its driver"
    kind = _scheme(line).partition("+")[0]
    spellings = " or ".join(f"{kind}+{driver}://…" for driver in _DRIVERS.get(kind, ()))
    hint = f"; another driver is named as in {spellings}" if spellings else ""
    return f"`storage` {_scheme(line)}://…: needs the Python module {module}, which is not installed{hint}"


# Journals
# --------


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
        _mend(path, lock)
        return load_optuna().storages.JournalStorage(journal.JournalFileBackend(str(path), lock_obj=lock))
    except (OSError, UsageError) as error:
        raise StorageError(f"`storage` {_shown(line)}: {_told(error, line)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"`storage` {_shown(line)}: the journal is damaged ({first_line(error)}); choose another"
        ) from error


def _mend(path: Path, lock: Any) -> None:
    """Cut off a last line that a process did not come to the end of: what follows it would be lost too."""
    if not path.exists() or not os.access(path, os.W_OK):
        return
    lock.acquire()  # nobody is writing now
    try:
        with path.open("r+b") as file:
            whole = file.read().rfind(_END) + 1
            if whole < file.tell():
                file.truncate(whole)
    finally:
        lock.release()
