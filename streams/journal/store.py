"""Checkpoints as files: parts named by their sha256, and manifests that list them.

A checkpoint counts when a counted ``mark`` names its manifest. Parts lie under their branch; unchanged parts are not written
again. Source: docs/design/journal.md, rule 11.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from millrace.streams.errors import DamageError, MissingPartError, StorageError
from millrace.streams.journal.entries import Fork, Host, Mark
from millrace.streams.parts import sha256
from millrace.streams.source import Position

log = logging.getLogger("millrace")

GRACE_S = 3600  # an orphan younger than this may belong to a mark that is on its way


class Part(msgspec.Struct, frozen=True):
    """One blob of a checkpoint."""

    sha256: str
    bytes: int
    truth: bool  # whether it is hashed into the state's hash


class Run(msgspec.Struct, frozen=True):
    """Journal entries that follow one another, dead ones too, packed into one blob; and what counts at their end."""

    sha256: str
    first: int  # offset
    stop: int  # the offset after the last
    seq: int  # of the last entry that counts
    epoch: int
    host: Host  # of the writer at the end
    level: int = 0  # 0: of one version; above: gathered from those of several

    @property
    def count(self) -> int:
        """How many entries."""
        return self.stop - self.first


class VersionName(msgspec.Struct, frozen=True):
    """A version by its id and its state."""

    version: str
    state_sha256: str


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version says of the journal: the entries since its parent, where those before are, and what they come to.

    Where the journal has deleted its beginning, the segments of any later version give it back to the byte.
    """

    parent: VersionName | None  # None: the fork
    cause: str  # why the version was made
    entries: Run  # since the parent
    before: list[Run]  # from offset 0 to there
    fork: Fork
    marks: list[Mark]  # of the checkpoints that were kept then, oldest first; none where the journal keeps all its entries
    began: Position  # where the entries began to read
    position: Position  # the next offset of every partition
    records: int
    learned: int  # rows
    scores: dict[str, dict[str, Any]]  # totals of answers given before their rows were learned: "scores", "served_scores"
    included: list[int] = []  # exclusions of the fork that acts have ended, by their place

    @property
    def runs(self) -> list[Run]:
        """Everything from offset 0 to the version's state."""
        return [*self.before, self.entries]


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a checkpoint is made of."""

    format: int
    branch: str
    state_seq: int
    state_sha256: str
    parts: dict[str, Part]
    segment: Segment | None = None  # of a version; the oldest have none

    @property
    def blobs(self) -> set[str]:
        """The names of everything it lists."""
        runs = [] if self.segment is None else self.segment.runs
        return {part.sha256 for part in self.parts.values()} | {run.sha256 for run in runs}


def state_sha256(parts: Mapping[str, Part]) -> str:
    """The hash of a state: of the names and hashes of the parts that are its record of truth."""
    lines = [f"{name} {part.sha256}\n" for name, part in sorted(parts.items()) if part.truth]
    return sha256("".join(lines).encode())


class Store(Protocol):
    """Keeps blobs by their hash, branch by branch."""

    def put(self, branch: str, blob: bytes, more_follow: bool = False) -> str:
        """Store ``blob`` unless it is there; returns its sha256 once it is on the disk.

        Where ``more_follow``, that holds once a later one of the branch has been put without.
        """

    def get(self, branch: str, name: str) -> bytes:
        """The blob. Raises: DamageError naming it where it is missing or not what was stored."""

    def sweep(self, branch: str, keep: set[str], before_s: float) -> int:
        """Delete what is not in ``keep`` and was stored before ``before_s`` (since 1970); returns how many bytes."""


class ListStore:
    """A store in memory, for tests."""

    def __init__(self) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}

    def put(self, branch: str, blob: bytes, more_follow: bool = False) -> str:
        """Keep it."""
        self.blobs[branch, sha256(blob)] = blob
        return sha256(blob)

    def get(self, branch: str, name: str) -> bytes:
        """Give it back, checked."""
        return _checked(self.blobs.get((branch, name)), name, f"{branch}/{name}")

    def sweep(self, branch: str, keep: set[str], before_s: float) -> int:
        """Drop what is not kept, whenever it was stored."""
        dropped = [key for key in self.blobs if key[0] == branch and key[1] not in keep]
        return sum(len(self.blobs.pop(key)) for key in dropped)


class FolderStore:
    """A store in a folder: ``BRANCH/SHA256``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, branch: str, name: str) -> Path:
        """Where a blob lies."""
        return self.root / branch / name

    def put(self, branch: str, blob: bytes, more_follow: bool = False) -> str:
        """Write to a temporary name, sync, rename, sync the folder: a crash leaves all of it or nothing.

        The folder is synced once for all of which ``more_follow``.
        """
        name = sha256(blob)
        path = self.path(branch, name)
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.read_bytes() == blob:
                os.utime(path)  # young again, so that a sweep leaves it to the mark that is coming
            else:
                _write(path, path.with_name(f".{name}.{os.getpid()}"), blob)
            if not more_follow:
                _sync_folder(path.parent)
        return name

    def get(self, branch: str, name: str) -> bytes:
        """Read and check it."""
        path = self.path(branch, name)
        with _disk_errors(path):
            blob = path.read_bytes() if path.exists() else None
        return _checked(blob, name, str(path))

    def sweep(self, branch: str, keep: set[str], before_s: float) -> int:
        """Delete old orphans."""
        freed = 0
        with _disk_errors(self.root):
            for path in (self.root / branch).glob("*"):
                if path.name not in keep and path.stat().st_mtime < before_s:
                    freed += path.stat().st_size
                    path.unlink()
        return freed

    def bytes_of(self, branch: str) -> int:
        """What a branch's parts weigh on the disk."""
        with _disk_errors(self.root):
            return sum(path.stat().st_size for path in (self.root / branch).glob("*"))


def read_checkpoint(store: Store, branch: str, name: str) -> Checkpoint:
    """The manifest of a checkpoint. Raises: DamageError where it is missing or damaged."""
    try:
        manifest = msgspec.json.decode(store.get(branch, name), type=Checkpoint)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamageError(
            f"Checkpoint {name} of branch {branch} was written by another release: {error}. Use that one."
        ) from error
    if state_sha256(manifest.parts) != manifest.state_sha256:
        raise DamageError(
            f"Checkpoint {name} of branch {branch}: its parts are not those of the state it names. Restore it from a copy."
        )
    return manifest


def sweep(
    store: Store,
    branch: str,
    marks: Sequence[Mark],
    owned_s: float,
    referenced: Collection[str] = (),
    known: dict[str, set[str]] | None = None,
) -> int:
    """Delete orphans and the checkpoints of a branch that are not of ``marks``; keep those of ``referenced``.

    Only the branch's writer calls it. ``known`` is what manifests, by their names, were found to list: none is read twice.

    ``owned_s`` is when the writer was last sure of that: if it has been frozen since, what its successor stored stays. Returns
    bytes freed: 0 while a kept manifest is damaged, since it is unknown then which parts it needs.
    """
    names, known = set(referenced), {} if known is None else known
    try:
        for mark in marks:
            if mark.checkpoint is not None:
                if mark.checkpoint not in known:
                    known[mark.checkpoint] = read_checkpoint(store, branch, mark.checkpoint).blobs
                names.add(mark.checkpoint)
                names |= known[mark.checkpoint]
    except DamageError as error:
        log.warning("Nothing was swept from branch %s: %s", branch, error)
        return 0
    return store.sweep(branch, names, owned_s - GRACE_S)


def kept_marks(marks: Sequence[Mark], keep: int, released: Collection[str] = ()) -> list[Mark]:
    """The marks whose checkpoints are kept: the ``keep`` newest, versions but the ``released`` ones, and a fork's start."""
    return [
        mark
        for at, mark in enumerate(marks)
        if at >= len(marks) - keep or mark.state_seq == 1 or (mark.version is not None and mark.version not in released)
    ]


def _checked(blob: bytes | None, name: str, where: str) -> bytes:
    if blob is None:
        raise MissingPartError(f"{where}: this checkpoint part is missing. Restore it from a copy.")
    if sha256(blob) != name:
        raise DamageError(f"{where}: this checkpoint part is not what was stored (its sha256 differs). Restore it from a copy.")
    return blob


def _write(path: Path, draft: Path, blob: bytes) -> None:
    try:
        with draft.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)  # on a full disk half a part is room that the next attempt needs
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror or error}. Nothing that was marked is lost. Free space or make the folder writable, "
            "then start again: the run goes on from its newest mark."
        ) from error
