"""Copies of a state folder that is in use, and the way back; the chart's CronJob and init step run it.

Databases are copied as of one moment: while nobody can append to a journal or to the ledger, a reader of each takes its
place, and what it sees stays. So scores in the log are of entries that the journal has, and what a journal names is in the log.

Parts of the store are copied before that moment and again after it. One that a journal names was there before, or has come
since; and none is let go in its first hour. They are named by their own hash and never change, so one that an earlier copy has
is linked and not copied again.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import apsw

BUSY_MS = 30_000  # that another process may hold a database
PASSED_OVER = ("endpoint.json", "token")  # of the process that runs, or secret
DRAFT = ".draft"  # ends the name of a copy that is not whole


def copy(home: Path, backups: Path, keep: int) -> None:
    """Copy every pipeline below ``home`` to a new folder below ``backups``, and let go all but the newest ``keep``."""
    pipelines = [folder for folder in sorted(home.iterdir()) if (folder / "store").is_dir()]
    if not pipelines:
        sys.exit(f"{home}: there is no pipeline here to copy. Has the pod begun?")
    for draft in backups.glob(f"*{DRAFT}"):
        shutil.rmtree(draft)
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%fZ")
    draft, earlier = backups / f"{name}{DRAFT}", next(iter(copies(backups)), None)
    for pipeline in pipelines:
        _copy_pipeline(pipeline, draft / pipeline.name, None if earlier is None else earlier / pipeline.name)
    _synced(draft)
    draft.rename(backups / name)
    for old in copies(backups)[keep:]:
        shutil.rmtree(old)
    size = sum(path.stat().st_size for path in (backups / name).rglob("*") if path.is_file())
    print(f"{name}: {', '.join(folder.name for folder in pipelines)}, {size} bytes; {len(copies(backups))} copies are kept")


def copies(backups: Path) -> list[Path]:
    """Whole copies, newest first."""
    return sorted((path for path in backups.glob("*Z") if path.is_dir()), reverse=True)


def _copy_pipeline(source: Path, target: Path, earlier: Path | None) -> None:
    _copy_files(source, target, earlier)
    with ExitStack() as stack:
        for database, reader in _readers(source, stack).items():
            _copy_database(reader, target / database.relative_to(source))
    _copy_files(source, target, earlier)  # parts that came meanwhile


def _readers(source: Path, stack: ExitStack) -> dict[Path, apsw.Connection]:
    """A reader of every database, all of one moment; ``stack`` closes them."""
    databases = sorted(source.rglob("*.sqlite"))
    with ExitStack() as locks:
        for database in databases:
            if database.name != "log.sqlite":  # rows may be sent meanwhile
                _opened(database, locks).execute("begin immediate")  # rolled back as it is closed
        readers = {database: _opened(database, stack) for database in databases}
        for reader in readers.values():
            reader.execute("begin")
            reader.execute("select count(*) from sqlite_master").fetchall()  # where it sees, from now on
    return readers


def _opened(database: Path, stack: ExitStack) -> apsw.Connection:
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)
    stack.callback(connection.close)
    connection.set_busy_timeout(BUSY_MS)
    return connection


def _copy_files(source: Path, target: Path, earlier: Path | None) -> None:
    for file in _files(source):
        place = target / file.relative_to(source)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(file, place, None if earlier is None else earlier / file.relative_to(source))


def _files(folder: Path) -> Iterator[Path]:
    """What is neither a database nor one's draft, lock or secret."""
    for file in sorted(folder.rglob("*")):
        plain = file.is_file() and not file.name.startswith(".") and not file.name.endswith(".lock")
        if plain and ".sqlite" not in file.name and file.name not in PASSED_OVER:
            yield file


def _copy_file(file: Path, place: Path, earlier: Path | None) -> None:
    try:
        if "store" in file.parts and earlier is not None and earlier.exists():
            os.link(earlier, place)
        else:
            shutil.copyfile(file, place)
    except FileNotFoundError:  # a part that was let go meanwhile
        place.unlink(missing_ok=True)


def _copy_database(reader: apsw.Connection, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    target = apsw.Connection(str(place))
    with target.backup("main", reader, "main") as running:
        running.step(-1)
    target.execute("pragma journal_mode = delete")  # one file, with nothing beside it
    target.close()


def _synced(folder: Path) -> None:
    """Everything on the disk before it gets its name."""
    for path in [folder, *folder.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def restore(backups: Path, home: Path, name: str) -> None:
    """Begin an empty ``home`` with a copy, ``latest`` or its name; leave one that has a pipeline as it is."""
    if there := [folder.name for folder in home.iterdir() if (folder / "store").is_dir()]:
        print(f"{home} has {', '.join(there)} already: nothing is restored")
        return
    whole = copies(backups)
    chosen = whole[:1] if name == "latest" else [path for path in whole if path.name == name]
    if not chosen:
        known = ", ".join(path.name for path in whole) or "none"
        sys.exit(f"backup.restore = {name}: there is no such copy; there are: {known}")
    for pipeline in chosen[0].iterdir():
        draft = home / f".{pipeline.name}{DRAFT}"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(pipeline, draft, copy_function=shutil.copyfile)
        _synced(draft)
        draft.rename(home / pipeline.name)
    print(f"{chosen[0].name} is restored to {home}")


if __name__ == "__main__":
    if sys.argv[1] == "copy":
        copy(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        restore(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
