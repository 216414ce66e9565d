"""Checkpoints as files: all of a part or nothing, swept with care, and every damage named."""

from __future__ import annotations

import os
import time
from pathlib import Path
from stat import S_ISDIR

import msgspec
import pytest
from pipelines import fill, make_read_only, small_disk

from millrace.streams.branch.branch import load_checkpoint, save_checkpoint
from millrace.streams.errors import DamageError, StorageError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.store import (
    GRACE_S,
    Checkpoint,
    FolderStore,
    ListStore,
    kept_marks,
    read_checkpoint,
    state_sha256,
    sweep,
)
from millrace.streams.parts import sha256

OLD_S = GRACE_S + 60


def parts(rows: int) -> dict[str, dict[str, object]]:
    """A state whose features part never changes."""
    return {"learner": {"rows": rows}, "features": {"slots": ["a"]}, "scores": {"correct": rows / 2}}


def mark(store: FolderStore | ListStore, seq: int, version: bool = False) -> Mark:
    """A stored checkpoint and the mark that names it."""
    name, manifest = save_checkpoint(store, "main", seq, parts(seq))
    hashes = {"state_seq": seq, "state_sha256": manifest.state_sha256, "checkpoint": name}
    return Mark(branch="main", seq=seq + 1, epoch=1, version=f"main.{seq}" if version else None, **hashes)


def age(store: FolderStore, seconds: float) -> None:
    """Let every file be so old."""
    then = time.time() - seconds
    for path in (store.root / "main").iterdir():
        os.utime(path, (then, then))


def grace() -> float:
    """Before when an orphan is old."""
    return time.time() - GRACE_S


def files(store: FolderStore) -> set[str]:
    """What lies under the branch."""
    return {path.name for path in (store.root / "main").iterdir()}


def needed(store: FolderStore, kept: list[Mark]) -> set[str]:
    """The files that these marks name, manifests and parts."""
    return {kept_mark.checkpoint for kept_mark in kept} | {
        part.sha256 for kept_mark in kept for part in read_checkpoint(store, "main", kept_mark.checkpoint).parts.values()
    }


def test_a_stored_part_is_read_back_and_named_by_its_hash(tmp_path: Path) -> None:
    """In a folder and in memory alike."""
    for store in (FolderStore(tmp_path), ListStore()):
        for blob in (b"", b"x", os.urandom(100_000)):
            assert store.put("main", blob) == sha256(blob) and store.get("main", sha256(blob)) == blob


def test_unchanged_parts_are_not_written_again(tmp_path: Path) -> None:
    """The second checkpoint adds its own parts and its manifest only; the shared part becomes young again."""
    store = FolderStore(tmp_path)
    mark(store, 10)
    first = files(store)
    age(store, OLD_S)
    shared = read_checkpoint(store, "main", mark(store, 20).checkpoint).parts["features"].sha256
    assert shared in first and len(files(store) - first) == 3
    assert store.path("main", shared).stat().st_mtime > time.time() - GRACE_S


def test_a_checkpoint_is_on_the_disk_when_its_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file was synced before it got its name, and the folder once after the last had got its own; again if made again."""
    store, synced_files, synced_folders = FolderStore(tmp_path), set[int](), list[set[str]]()
    sync = os.fsync

    def watched(handle: int) -> None:
        sync(handle)
        if S_ISDIR(os.fstat(handle).st_mode):
            synced_folders.append(files(store))
        else:
            synced_files.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", watched)
    for times in (1, 2):
        checkpoint = mark(store, 10).checkpoint
        assert synced_folders == [files(store)] * times and checkpoint in files(store)
        assert {store.path("main", name).stat().st_ino for name in files(store)} == synced_files


def test_a_crash_before_the_rename_leaves_nothing_visible(tmp_path: Path) -> None:
    """What the draft holds is under no part's name, a later put is not disturbed, and a sweep takes it in time."""
    store, blob = FolderStore(tmp_path), b"half of a part and the other half"
    (tmp_path / "main").mkdir()
    draft = tmp_path / "main" / f".{sha256(blob)}.4711"
    draft.write_bytes(blob[:10])
    with pytest.raises(DamageError, match="missing"):
        store.get("main", sha256(blob))
    assert store.sweep("main", set(), grace()) == 0 and draft.exists()
    assert store.get("main", store.put("main", blob)) == blob
    age(store, OLD_S)
    assert store.sweep("main", {sha256(blob)}, grace()) == 10 and files(store) == {sha256(blob)}


def test_a_truncated_part_of_a_crashed_machine_is_written_again(tmp_path: Path) -> None:
    """Its size tells."""
    store, blob = FolderStore(tmp_path), b"whole"
    store.path("main", store.put("main", blob)).write_bytes(b"who")
    assert store.get("main", store.put("main", blob)) == blob


def test_a_part_with_a_flipped_bit_is_written_again(tmp_path: Path) -> None:
    """Its size does not tell; a checkpoint that is made now must not be born damaged."""
    store, blob = FolderStore(tmp_path), b"whole"
    store.path("main", store.put("main", blob)).write_bytes(b"whale")
    assert store.get("main", store.put("main", blob)) == blob


def test_a_sweep_keeps_what_a_kept_mark_names_and_deletes_the_old_rest(tmp_path: Path) -> None:
    """The newest two, every version's, and the parts they share with what goes."""
    store = FolderStore(tmp_path)
    marks = [mark(store, seq, version=seq == 20) for seq in (10, 20, 30, 40, 50)]
    kept = needed(store, [marks[1], marks[3], marks[4]])
    age(store, OLD_S)
    before = files(store)
    freed = sweep(store, "main", kept_marks(marks, keep=2), owned_s=time.time())
    assert files(store) == kept and freed > 0 and len(before - kept) == 6
    for kept_mark in (marks[1], marks[3], marks[4]):
        assert load_checkpoint(store, kept_mark) == parts(kept_mark.state_seq)


def test_a_sweep_leaves_young_orphans(tmp_path: Path) -> None:
    """They may belong to a mark that is on its way."""
    store = FolderStore(tmp_path)
    marks = [mark(store, seq) for seq in (10, 20, 30)]
    before = files(store)
    age(store, GRACE_S - 60)
    assert sweep(store, "main", kept_marks(marks, keep=1), owned_s=time.time()) == 0 and files(store) == before


def test_a_writer_that_was_frozen_leaves_what_its_successor_has_stored_since(tmp_path: Path) -> None:
    """Its marks are behind; only what was an orphan when it last owned the branch is its to sweep."""
    store = FolderStore(tmp_path)
    marks = [mark(store, seq) for seq in (10, 20)]
    age(store, 3 * OLD_S)
    successor = mark(store, 30)
    age_s = time.time() - OLD_S
    for name in needed(store, [successor]):
        os.utime(store.path("main", name), (age_s, age_s))
    assert sweep(store, "main", kept_marks(marks, keep=1), owned_s=time.time() - 2 * OLD_S) > 0
    assert load_checkpoint(store, marks[1]) == parts(20) and load_checkpoint(store, successor) == parts(30)


def test_nothing_is_swept_while_a_kept_manifest_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody knows then which parts it needs."""
    store = FolderStore(tmp_path)
    marks = [mark(store, seq) for seq in (10, 20, 30)]
    store.path("main", marks[2].checkpoint).write_bytes(b"{")
    age(store, OLD_S)
    before = files(store)
    assert sweep(store, "main", kept_marks(marks, keep=2), owned_s=time.time()) == 0 and files(store) == before
    assert "Nothing was swept from branch main" in caplog.text


def test_a_sweep_stays_within_its_branch(tmp_path: Path) -> None:
    """Parts lie under their branch, whatever they hold."""
    for store in (FolderStore(tmp_path), ListStore()):
        store.put("main", b"x")
        name = store.put("other", b"x")
        if isinstance(store, FolderStore):
            age(store, OLD_S)
        assert store.sweep("main", set(), grace()) == 1 and store.get("other", name) == b"x"


def test_every_damage_to_a_part_is_refused_naming_its_path(tmp_path: Path) -> None:
    """Each bit of each byte, each cut, and its absence."""
    store, blob = FolderStore(tmp_path), b"a small part"
    path = store.path("main", store.put("main", blob))
    flips = [blob[:at] + bytes([blob[at] ^ 1 << bit]) + blob[at + 1 :] for at in range(len(blob)) for bit in range(8)]
    for damaged in [*flips, *(blob[:end] for end in range(len(blob))), blob + b"\x00"]:
        path.write_bytes(damaged)
        with pytest.raises(DamageError, match=r"is not what was stored .* Restore it from a copy") as refused:
            store.get("main", path.name)
        assert str(refused.value).startswith(str(path))
    path.unlink()
    with pytest.raises(DamageError, match=f"{path}: this checkpoint part is missing"):
        store.get("main", path.name)


def test_a_manifest_that_lists_other_parts_than_its_state_is_refused() -> None:
    """Even where every hash is sound: the state's hash is over the parts that are its record of truth."""
    store = ListStore()
    older = mark(store, 10)
    manifest = read_checkpoint(store, "main", older.checkpoint)
    other = read_checkpoint(store, "main", mark(store, 20).checkpoint)
    mixed = msgspec.structs.replace(manifest, parts=manifest.parts | {"learner": other.parts["learner"]})
    name = store.put("main", msgspec.json.encode(mixed))
    with pytest.raises(DamageError, match="its parts are not those of the state it names"):
        read_checkpoint(store, "main", name)
    with pytest.raises(DamageError, match="is not of the state that the mark of seq 10 names"):
        load_checkpoint(store, msgspec.structs.replace(older, checkpoint=mark(store, 20).checkpoint))


@pytest.mark.parametrize("blob", [b"", b"{", b"null", b"\xff", b'{"format":1}', b'{"format":1,"new":2}', b"[[[[[["])
def test_a_manifest_that_cannot_be_read_is_refused_as_damage(blob: bytes) -> None:
    """By name and branch, so that recovery goes back to the checkpoint before."""
    store = ListStore()
    name = store.put("main", blob)
    with pytest.raises(DamageError, match=f"Checkpoint {name} of branch main"):
        read_checkpoint(store, "main", name)


def test_the_hash_of_a_state_covers_its_record_of_truth_only() -> None:
    """Derived parts are compared by value; names count, order does not."""
    store = ListStore()
    listed = read_checkpoint(store, "main", mark(store, 10).checkpoint).parts
    truth = {name: part for name, part in listed.items() if part.truth}
    assert set(truth) == {"features", "learner"} and state_sha256(truth) == state_sha256(listed)
    assert state_sha256(dict(reversed(truth.items()))) == state_sha256(truth)
    renamed = {"learner": truth["features"], "features": truth["learner"]}
    assert state_sha256(renamed) != state_sha256(truth)
    assert set(msgspec.structs.asdict(Checkpoint(1, "main", 10, "", listed))) == {
        *("format", "branch", "state_seq", "state_sha256", "parts", "segment")
    }


def test_a_full_disk_is_one_sentence_with_the_choices_and_loses_nothing_marked(tmp_path: Path) -> None:
    """The failed part is not there, no draft takes up room, the marked one is whole; with room it goes on."""
    with small_disk(tmp_path / "disk", 256) as disk:
        store = FolderStore(disk / "store")
        marked = mark(store, 10)
        before = files(store)
        fill(disk, leave=20_000)
        with pytest.raises(StorageError, match="No space left on device. Nothing that was marked is lost. Free space"):
            store.put("main", os.urandom(100_000))
        assert files(store) == before and load_checkpoint(store, marked) == parts(10)
        (disk / "ballast").unlink()
        blob = os.urandom(100_000)
        assert store.get("main", store.put("main", blob)) == blob


def test_a_read_only_folder_is_one_sentence_with_the_choices(tmp_path: Path) -> None:
    """Reading still works."""
    with small_disk(tmp_path / "disk", 256) as disk:
        store = FolderStore(disk / "store")
        marked = mark(store, 10)
        make_read_only(disk)
        with pytest.raises(StorageError, match="Read-only file system. Nothing that was marked is lost. Free space or make"):
            store.put("main", b"more")
        assert load_checkpoint(store, marked) == parts(10)


def test_a_file_where_the_folder_should_be_is_a_storage_error(tmp_path: Path) -> None:
    """And names the path."""
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match=str(tmp_path / "store")):
        FolderStore(tmp_path / "store").put("main", b"x")
