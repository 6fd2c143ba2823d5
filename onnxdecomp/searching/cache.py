"""What searches have measured before, on disk: small JSON files, one per machine or model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxdecomp.errors import OutputError, first_line
from onnxdecomp.ir import write_text
from onnxdecomp.runtime import cache_folder

_VERSION = 1


def digest(*parts: bytes | str) -> str:
    """A short name for what `parts` say."""
    found = hashlib.blake2b(digest_size=12)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


class Cache:
    """Numbers by key, kept in one file together with what they were measured on.

    Attributes:
        path: of the file.
        note: one line where the file was damaged and starts anew, or cannot be written; else None.
    """

    def __init__(self, kind: str, conditions: Mapping[str, Any], folder: Path | None = None) -> None:
        """
        Args:
            kind: first part of the file's name.
            conditions: what the numbers hold for, as JSON values: others have another file.
            folder: None is `cache_folder()`.
        """
        self._conditions = {"version": _VERSION, **conditions}
        text = json.dumps(self._conditions, sort_keys=True)
        self.path = (folder or cache_folder()) / f"{kind}-{digest(text)}.json"
        self.note: str | None = None
        self._values: dict[str, float] = {}
        self._changed = False
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            values = {str(key): float(value) for key, value in document["values"].items()}
            if document["conditions"] != self._conditions or not all(map(math.isfinite, values.values())):
                raise ValueError("it is about something else")
            self._values = values
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.note = f"the cache {self.path} is damaged and starts anew ({type(error).__name__})"

    def get(self, key: str) -> float | None:
        """The number, None where it is not known."""
        return self._values.get(key)

    def put(self, values: Mapping[str, float]) -> None:
        """Add numbers and write the file."""
        self._values |= values
        document = {"conditions": self._conditions, "values": self._values}
        # A search without a cache is slower, no more.
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(document, indent=0), set())
        except (OSError, OutputError) as error:
            self.note = f"nothing measured is kept for the next search: {first_line(error)}"
