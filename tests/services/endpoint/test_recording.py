"""What replicas append to the log: nothing that was promised is lost, and what is dropped is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import apsw
import pytest
from pipelines import TIMEOUT_S

from millrace.learners.errors import BadInputError
from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.recording import Recorder
from millrace.streams.errors import StorageError
from millrace.streams.records import Record
from millrace.streams.sqlite.log import MAX_VALUE_BYTES, SqliteLog

TOPIC = "flowers.served"
PATIENT = ServingConfig(log_s=float(TIMEOUT_S))  # a log on a busy machine is slow, which is no fault


def opened(path: Path) -> SqliteLog:
    """A log with the topic."""
    log = SqliteLog(path)
    log.create_topic(TOPIC, 2)
    return log


def records(*values: int) -> Sequence[Record]:
    """Records of these values, each with a key."""
    return [Record(str(value).encode(), str(value).encode()) for value in values]


def values(log: SqliteLog) -> list[int]:
    """Everything in the topic."""
    return sorted(int(event.value or b"") for number in range(2) for event in log.fetch(f"{TOPIC}:{number}", 0, None, 999)[0])


def test_answers_and_labels_are_in_the_log_and_labels_hear_where(tmp_path: Path) -> None:
    """What is stored for a caller is what the log has at that partition and offset."""
    recorder = Recorder(lambda: opened(tmp_path / "log.sqlite"), TOPIC, PATIENT)
    assert recorder.later(2, lambda: records(1, 2))
    at = asyncio.run(recorder.now(records(3)))
    recorder.close(TIMEOUT_S)
    log = SqliteLog(tmp_path / "log.sqlite")
    assert values(log) == [1, 2, 3]
    ((number, offset),) = at
    assert log.fetch(f"{TOPIC}:{number}", offset, offset + 1, 1)[0][0].value == b"3"
    assert (recorder.counts.stored, recorder.counts.dropped, recorder.counts.waiting) == (3, 0, 0)


def test_while_the_log_is_down_labels_are_refused_and_answers_wait_until_it_is_back(tmp_path: Path) -> None:
    """The folder is a file at first, so the log cannot be opened."""
    (tmp_path / "state").write_text("in the way")
    recorder = Recorder(lambda: opened(tmp_path / "state" / "log.sqlite"), TOPIC, PATIENT)
    assert recorder.later(1, lambda: records(1))
    with pytest.raises(StorageError, match="takes nothing now"):
        asyncio.run(recorder.now(records(2)))
    (tmp_path / "state").unlink()
    asyncio.run(recorder.now(records(3)))
    recorder.close(TIMEOUT_S)
    assert values(SqliteLog(tmp_path / "state" / "log.sqlite")) == [1, 3]
    assert (recorder.counts.stored, recorder.counts.dropped) == (2, 0)


def test_what_waits_is_bounded_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    """Answers over the bound; and all that wait where the replica ends before the log is back."""
    (tmp_path / "state").write_text("in the way")
    recorder = Recorder(lambda: opened(tmp_path / "state" / "log.sqlite"), TOPIC, ServingConfig(max_rows=3, waiting_rows=3))
    taken = [recorder.later(2, lambda: records(1, 2)), recorder.later(2, lambda: records(3, 4))]
    recorder.close(TIMEOUT_S)
    assert taken == [True, False] and (recorder.counts.stored, recorder.counts.dropped) == (0, 4)
    assert not recorder.later(1, lambda: records(5)) and recorder.counts.dropped == 5
    with pytest.raises(StorageError, match="ending"):
        asyncio.run(recorder.now(records(6)))


def test_a_log_that_hangs_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """Another process holds the write lock; the label may be there all the same once that is over, as its caller is told."""
    log = opened(tmp_path / "log.sqlite")
    holder = apsw.Connection(str(tmp_path / "log.sqlite"))
    holder.execute("begin immediate")
    recorder = Recorder(lambda: log, TOPIC, ServingConfig(log_s=0.2))
    with pytest.raises(StorageError, match="has not answered"):
        asyncio.run(recorder.now(records(1)))
    holder.execute("rollback")
    recorder.close(TIMEOUT_S)
    assert values(log) == [1]


def test_a_caller_who_leaves_harms_nobody(tmp_path: Path) -> None:
    """Cancelled while the log is busy: the others' labels are stored, and so is this one."""
    log = opened(tmp_path / "log.sqlite")
    holder = apsw.Connection(str(tmp_path / "log.sqlite"))
    holder.execute("begin immediate")
    recorder = Recorder(lambda: log, TOPIC, PATIENT)

    async def calls() -> None:
        leaving, staying = (asyncio.create_task(recorder.now(records(value))) for value in (1, 2))
        await asyncio.sleep(0)  # both have said what to append
        assert leaving.cancel()
        await asyncio.wait([leaving])
        assert not staying.done()
        holder.execute("rollback")
        await staying

    asyncio.run(calls())
    recorder.close(TIMEOUT_S)
    assert values(log) == [1, 2]


def test_what_the_log_will_never_take_is_dropped_and_the_others_are_stored(tmp_path: Path) -> None:
    """One record of three is larger than any log holds, and one job cannot make its records; a label's caller hears why."""
    log = opened(tmp_path / "log.sqlite")
    holder = apsw.Connection(str(tmp_path / "log.sqlite"))
    holder.execute("begin immediate")
    recorder = Recorder(lambda: log, TOPIC, PATIENT)
    large = [Record(bytes(MAX_VALUE_BYTES + 1))]

    def unmade() -> Sequence[Record]:
        raise ZeroDivisionError("a record that cannot be made")

    jobs = [lambda: records(1), lambda: large, unmade, lambda: records(2)]
    assert all(recorder.later(1, make, 10) for make in jobs)
    holder.execute("rollback")
    with pytest.raises(BadInputError, match="is over the log's"):
        asyncio.run(recorder.now(large))
    asyncio.run(recorder.now(records(3)))
    recorder.close(TIMEOUT_S)
    assert values(log) == [1, 2, 3]
    counts = recorder.counts
    assert (counts.stored, counts.dropped, counts.waiting, counts.waiting_bytes) == (3, 2, 0, 0)
