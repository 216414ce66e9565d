"""Digests of files that were hashed before, by place, size and times, so that not every command reads a large model.

They lie in one file of the user's cache. It is a cache: what cannot be read is computed, what cannot be written is not kept.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from millrace.learners.draft.folder import digest
from millrace.learners.errors import ConfigError

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
MOST = 4096  # files that are remembered, the newest; a large model alone has over a hundred


class Digests:
    """sha256 of files, remembered in a folder; None: not remembered."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "digests.json"

    def of(self, path: Path) -> str:
        """The sha256 of a file. Raises: ConfigError where it cannot be read."""
        file = _identity(path)
        remembered = self._remembered()
        if file in remembered:
            return remembered[file]
        computed = digest(path)
        if _identity(path) == file:  # else it was written meanwhile
            self._remember(remembered | {file: computed})
        return computed

    def _remembered(self) -> dict[str, str]:
        """By ``_identity``."""
        with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            if self._path is not None:
                return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Digest])
        return {}

    def _remember(self, digests: dict[str, str]) -> None:
        if self._path is None:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(f".{os.getpid()}")
            draft.write_bytes(msgspec.json.encode(dict(list(digests.items())[-MOST:])))
            draft.replace(self._path)


def _identity(path: Path) -> str:
    """What changes whenever a file is written or another is put in its place. Raises: ConfigError."""
    try:
        facts = path.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    return f"{path.resolve()} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
