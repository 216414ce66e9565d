"""`verify` proves a run from the log, and fails on one flipped byte anywhere, naming it and the first bad mark."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
import apsw_rows
import msgspec
import numpy as np
import pytest
from pipelines import make_read_only, small_disk

from millrace.services.config.config import load_pipeline
from millrace.services.decisions import status as looking
from millrace.services.errors import NotProvedError
from millrace.services.pipeline.instance import Instance
from millrace.services.proof import verify as proving
from millrace.services.training import run as running
from millrace.streams.branch.branch import load_checkpoint, save_checkpoint
from millrace.streams.branch.difference import difference
from millrace.streams.checksummed import seal, unseal
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Entry, Mark, Open, Step
from millrace.streams.journal.journal import Cursor, counted, summarise
from millrace.streams.journal.store import read_checkpoint
from millrace.streams.records import Record
from millrace.streams.sqlite.stream import SqliteStream

PIPELINE = """
name = "proof"
[label]
name = "y"
type = "integer"
[[fields]]
name = "x"
size = 4
[learner]
kind = "ridge"
solve_rows = 50
[batch]
rows = 32
wait_ms = 1
[worker]
step_rows = 40
step_ms = 0
checkpoint_rows = 150
version_rows = 250
"""
ROWS = 600


@pytest.fixture(scope="module")
def proved(tmp_path_factory):
    """An instance that learned 600 rows in two epochs, with checkpoints and versions."""
    folder = tmp_path_factory.mktemp("proof")
    (folder / "proof.toml").write_text(PIPELINE)
    pipeline = instance(folder)
    x = np.random.default_rng(1).integers(-9, 10, (ROWS, 4))
    x[:, 3] = np.arange(ROWS)  # no two records alike
    records = [
        Record(json.dumps({"x": row.tolist(), "y": int(row[0]) % 3}).encode(), timestamp_ms=1 + at) for at, row in enumerate(x)
    ]
    pipeline.log().append("proof", records)
    running.run(pipeline, "main", running.Bounds(rows=300), take_over=False)
    running.run(pipeline, "main", running.Bounds(), take_over=False)
    return folder


@pytest.fixture
def copy(proved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(proved, tmp_path / "copy")


def instance(folder: Path) -> Instance:
    """The pipeline with its state beside its file."""
    return Instance(load_pipeline(folder / "proof.toml"), folder / "proof")


def flip(path: Path, at: int, bit: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def flip_in_table(path: Path, table: str, offset: int, chance: random.Random) -> None:
    """Change one bit of a stored value, and nothing that was stored beside it."""
    connection = apsw.Connection(str(path))
    value = bytearray(connection.execute(f"select value from {table} where offset = ?", (offset,)).fetchall()[0][0])
    value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
    connection.execute(f"update {table} set value = ? where offset = ?", (bytes(value), offset))
    connection.close()


def findings(folder: Path) -> str:
    """What verify says of damage."""
    with pytest.raises(NotProvedError) as error:
        proving.prove(instance(folder), "main")
    return str(error.value)


def marks(folder: Path) -> list[Mark]:
    """The counted marks."""
    return summarise(instance(folder).journal("main"), "main").marks


def test_a_run_is_proved_from_the_log_and_its_versions_are_certified(copy):
    """Every mark is folded again from the fork; the ledger then holds one certificate for each version."""
    report = proving.prove(instance(copy), "main")
    assert (report.base, report.records, report.unproved) == ("fork", ROWS, [])
    assert report.proved == marks(copy)
    versions = {mark.version for mark in marks(copy) if mark.version}
    assert set(instance(copy).ledger().certificates) == versions
    assert len(versions) >= 3
    proving.prove(instance(copy), "main")
    assert len(instance(copy).ledger().counted) == 1 + len(versions), "a version is certified once"


@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit_of_a_record_is_named_with_the_first_bad_mark(copy, seed):
    """The record's offset is in the message, and so is the first mark whose state has taken it in."""
    chance = random.Random(seed)
    offset = chance.randrange(ROWS)
    backends = instance(copy).backends("main")
    step = next(
        entry
        for entry in counted(backends.journal, "main", Cursor())
        if isinstance(entry, Step) and entry.reads and entry.reads[0][2] > offset
    )
    flip_in_table(copy / "proof" / "log.sqlite", f"records_{backends.source.topics()['proof'].id}_0", offset, chance)
    words = findings(copy)
    bad = next(mark for mark in marks(copy) if mark.state_seq >= step.seq)
    assert f"proof:0 offset {offset} " in words
    assert f"First bad mark: seq {bad.state_seq}" in words


@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit_of_a_journal_entry_is_named_with_the_first_bad_mark(copy, seed):
    """The entry's offset is in the message; what was counted before it is still proved."""
    chance = random.Random(seed)
    path = instance(copy).folder / "journal" / "main.sqlite"
    entries = list(SqliteStream(path).read(0))
    offset, _ = chance.choice(entries[2:])
    flip_in_table(path, "entries", offset, chance)
    words = findings(copy)
    assert f"journal entry at offset {offset} " in words
    later = [mark for mark in map(as_mark, (raw for at, raw in entries if at > offset)) if mark]
    assert (f"First bad mark: seq {later[0].state_seq}" if later else "No mark stands on it yet") in words


def as_mark(raw: bytes) -> Mark | None:
    """The entry, if it is a mark."""
    entry = unseal(raw, msgspec.json.Decoder(Entry), "here")
    return entry if isinstance(entry, Mark) else None


@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit_of_a_checkpoint_part_is_named_with_its_mark(copy, seed):
    """The file is in the message, and the first mark that names it."""
    chance = random.Random(seed)
    store = instance(copy).store()
    kept = [mark for mark in marks(copy) if mark.version]
    mark = chance.choice(kept)
    manifest = read_checkpoint(store, "main", mark.checkpoint)
    name = chance.choice([mark.checkpoint, *(part.sha256 for part in manifest.parts.values())])
    path = store.path("main", name)
    flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
    words = findings(copy)
    assert str(path) in words
    first = next(m for m in kept if name in names(store, m, name))
    assert f"First bad mark: seq {first.state_seq}" in words


def names(store, mark: Mark, damaged: str) -> set[str]:
    """The blobs of a mark's checkpoint; only its manifest if that is what was damaged."""
    if mark.checkpoint == damaged:
        return {damaged}
    return {part.sha256 for part in read_checkpoint(store, "main", mark.checkpoint).parts.values()}


def forge(folder: Path, part: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """A sound checkpoint of the newest marked state with one array changed, and a sound mark for it, then one as it was."""
    backends = instance(folder).backends("main")
    last = marks(folder)[-1]
    parts = load_checkpoint(backends.store, last)
    parts[part][name] = change(parts[part][name])
    checkpoint, manifest = save_checkpoint(backends.store, "main", last.state_seq, parts)
    at = summarise(backends.journal, "main").end
    forged = msgspec.structs.replace(
        last, seq=at.seq + 1, epoch=at.epoch, state_sha256=manifest.state_sha256, checkpoint=checkpoint, version=None
    )
    backends.journal.send(seal(forged)).offset()
    backends.journal.send(seal(msgspec.structs.replace(last, seq=at.seq + 2, epoch=at.epoch))).offset()


def test_a_checkpoint_of_another_state_is_found_although_its_bytes_are_sound(copy):
    """A forger who writes a sound checkpoint, manifest and mark is caught by folding the log again."""
    forge(copy, "learner", "gram", lambda gram: gram + 1.0)
    assert "Folding the log again gives another state (in learner)" in findings(copy)


def test_what_follows_from_the_truth_is_compared_too(copy):
    """A sound checkpoint with the right truth and another solution beside it is found."""
    forge(copy, "derived", "weights", lambda weights: weights * 1.001)
    assert "another derived part" in findings(copy)


def test_where_retention_has_passed_verify_begins_at_a_checkpoint_and_says_so(copy):
    """What the log no longer has cannot be folded again; the rest is proved from the oldest checkpoint that goes on."""
    pipeline = instance(copy)
    version = next(mark for mark in marks(copy) if mark.version)
    position = load_checkpoint(pipeline.store(), version)["counts"]["position"]["proof:0"]
    pipeline.log().delete_before("proof:0", position)
    report = proving.prove(pipeline, "main")
    assert report.base == f"checkpoint of seq {version.state_seq}"
    assert report.proved[-1] == marks(copy)[-1]
    assert len(report.unproved) < len(marks(copy))


def test_a_recreated_topic_is_not_taken_for_the_old_one(copy):
    """Another id under the same name: the log is not what the journal read."""
    pipeline = instance(copy)
    (copy / "proof" / "log.sqlite").unlink()
    for leftover in (copy / "proof").glob("log.sqlite-*"):
        leftover.unlink()
    pipeline.log()
    assert "was recreated" in findings(copy)


def test_the_difference_of_parts_is_relative_and_sees_shapes_and_names():
    """Numbers by their size; everything else by equality."""
    state = {"w": np.array([1.0, 100.0]), "n": 3, "names": ["a"]}
    assert difference(state, state) == 0.0
    assert difference(state, state | {"w": np.array([2.0, 100.0])}) == pytest.approx(0.01)
    assert difference(state, state | {"n": 4}) == np.inf
    assert difference(state, state | {"names": ["b"]}) == np.inf
    assert difference(state, state | {"w": np.ones(3)}) == np.inf
    assert difference(state, {"w": state["w"]}) == np.inf


def test_the_difference_of_parts_looks_into_mappings_and_lists():
    """Totals of scores are numbers in a mapping; another kind of host, or another Python, rounds those otherwise too."""
    state = {"totals": {"rows": 500, "squared_error": 247.40182065094004, "log_loss": None}, "mean": [[1.0, 2.0], "a"]}
    near = {"totals": {"log_loss": None, "squared_error": 247.40182065094007, "rows": 500}, "mean": [[1.0, 2.0 + 1e-12], "a"]}
    assert 0.0 < difference(state, near) < 1e-11
    assert difference(state, {"totals": state["totals"] | {"rows": 501}, "mean": state["mean"]}) == np.inf
    assert difference(state, {"totals": state["totals"] | {"log_loss": 0.5}, "mean": state["mean"]}) == np.inf
    assert difference({"x": 0.5}, {"x": None}) == difference({"x": 0.5}, {"x": float("nan")}) == np.inf
    assert difference(state, state | {"mean": [[1.0], "a"]}) == difference(state, state | {"mean": {}}) == np.inf


def change_journal(folder: Path, statements: str) -> None:
    """What somebody does to the journal behind our back."""
    apsw_rows.change(instance(folder).folder / "journal" / "main.sqlite", statements)


def test_an_entry_that_is_gone_from_the_middle_is_a_finding_although_the_offsets_were_closed_up(copy):
    """What stands behind the gap is ahead of what counts, which no honest writer could have written; nobody goes on."""
    change_journal(copy, "delete from entries where offset = 9; update entries set offset = offset - 1 where offset > 9")
    assert "entries between are gone" in findings(copy)
    with pytest.raises(DamageError, match="entries between are gone"):
        running.run(instance(copy), "main", running.Bounds(), take_over=False)


@pytest.mark.parametrize("kept", [0, 3, 14])
def test_a_journal_that_lost_its_end_is_a_finding_and_nobody_goes_on(copy, kept):
    """Scores that were let out and certificates say that there was more."""
    proving.prove(instance(copy), "main")
    change_journal(copy, f"delete from entries where offset >= {kept}")
    words = findings(copy)
    assert "its end is gone" in words
    assert "The ledger certifies version" in words
    with pytest.raises(DamageError, match="its end is gone"):
        running.run(instance(copy), "main", running.Bounds(), take_over=False)


def test_a_journal_of_another_branch_or_with_a_forged_version_is_a_finding(copy):
    """Entries say whose they are, and a version is named by its state."""
    path = instance(copy).folder / "journal" / "main.sqlite"
    shutil.copy(path, path.with_name("other.sqlite"))
    with pytest.raises(NotProvedError, match="is of branch main"):
        proving.prove(instance(copy), "other")
    entries = [unseal(raw, msgspec.json.Decoder(Entry), "here") for _, raw in SqliteStream(path).read(0)]
    offset, mark = [(at, entry) for at, entry in enumerate(entries) if isinstance(entry, Mark) and entry.version][-1]
    forged = seal(msgspec.structs.replace(mark, version="main.999"))
    apsw_rows.change(path, f"update entries set value = cast('{forged.decode()}' as blob) where offset = {offset}")
    assert "names a version main.999 of another state" in findings(copy)


def test_a_checkpoint_that_was_swept_is_no_finding_however_many_are_said_to_be_kept(copy):
    """Only altered parts, and missing ones of versions and of the newest mark, are."""
    pipeline = instance(copy)
    plain = [mark for mark in marks(copy) if not mark.version]
    pipeline.store().path("main", plain[0].checkpoint).unlink()
    assert proving.prove(pipeline, "main").proved == marks(copy)
    version = next(mark for mark in marks(copy) if mark.version)
    pipeline.store().path("main", version.checkpoint).unlink()
    assert f"First bad mark: seq {version.state_seq}" in findings(copy)


def test_on_another_kind_of_host_only_what_can_be_compared_is_proved(copy):
    """Within a tolerance, whose use is in the certificate; a mark whose checkpoint is gone is not claimed to be proved."""
    pipeline = instance(copy)
    path = pipeline.folder / "journal" / "main.sqlite"
    for offset, raw in list(SqliteStream(path).read(0)):
        entry = unseal(raw, msgspec.json.Decoder(Entry), "here")
        if isinstance(entry, Open):
            other = msgspec.structs.replace(entry, host=msgspec.structs.replace(entry.host, cpu="another"))
            apsw_rows.change(path, f"update entries set value = cast('{seal(other).decode()}' as blob) where offset = {offset}")
    plain = next(mark for mark in marks(copy) if not mark.version)
    pipeline.store().path("main", plain.checkpoint).unlink()
    report = proving.prove(pipeline, "main")
    assert report.unproved == [plain]
    assert report.proved == [mark for mark in marks(copy) if mark != plain]


@pytest.mark.parametrize("closed", [True, False])
def test_a_read_only_copy_is_proved_and_looked_at(copy, tmp_path, closed):
    """An auditor needs no right to write, whether the files were closed or copied as they were; no certificate is kept."""
    if closed:
        for path in (copy / "proof").rglob("*.sqlite"):
            apsw_rows.change(path, "select 1")
    with small_disk(tmp_path / "disk", 32768) as disk:
        read_only = shutil.copytree(copy, disk / "copy")
        make_read_only(disk)
        assert proving.prove(instance(read_only), "main").proved == marks(copy)
        assert looking.status(instance(read_only), "main")["records"] == ROWS
        assert list(looking.journal_lines(instance(read_only), "main"))
        assert instance(read_only).ledger().certificates == {}
