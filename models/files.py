"""Writing and hashing files."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from models.errors import ModelsError


def sha256_of(data: bytes) -> str:
    """The SHA-256 of `data`, as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` such that no reader ever sees a part of it.

    The bytes go to a temporary file beside `path`, which then takes its name; on failure the
    temporary file is removed and an old `path` is left as it was. Raises ModelsError.
    """
    # Beside, not in the system's temporary folder: a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ModelsError(f"cannot write {path}: {error.strerror}") from error
