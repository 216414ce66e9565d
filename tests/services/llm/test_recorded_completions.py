"""Completions on their way into the log: what waits is bounded by what a record has, and what no record may be is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_draft
from draft_pipelines import tiny
from pipelines import TIMEOUT_S
from served_pipeline import until

from millrace.learners.draft.completion import Completion, pack, unpack
from millrace.services.llm.recorded import CompletionLog, header_bytes, most_bytes

pytest.importorskip("torch", reason="a draft is torch's, the extra `llm`")


def called(name: str) -> Completion:
    """A completion whose request had that id."""
    made = tiny_draft.completion(np.random.default_rng(1))
    return replace(made, header=replace(made.header, id=name))


def test_a_record_is_never_larger_than_was_counted(tmp_path: Path) -> None:
    """Whatever its id; and not much smaller, so that what may wait is used."""
    for length in (0, 12, 128, 2000):
        completion = called("x" * length)
        assert 0 <= most_bytes(completion, header_bytes(completion)) - len(pack(completion)) <= 64


@pytest.mark.parametrize("name", ["x" * 5_000, "\u6c34" * 2_000, "y" * 15_000_000])
def test_a_completion_that_no_reader_takes_is_counted_and_does_not_hold_others_up(tmp_path: Path, name: str) -> None:
    """Its header is over what a reader accepts; those before and behind it are in the log, and can be read."""
    instance = tiny(tmp_path)
    taking = CompletionLog(instance)
    for each in ("before", name, "behind"):
        taking.take(called(each), b"acme")
    taking.recorder.close(TIMEOUT_S)
    assert (taking.too_large, taking.recorder.counts.stored, taking.recorder.counts.dropped) == (1, 2, 0)
    topic, log = instance.loaded.pipeline.topic, instance.log()
    events = log.fetch(f"{topic}:0", 0, None, 9)[0]
    assert [unpack(event.value or b"").header.id for event in events] == ["before", "behind"]
    assert [event.key for event in events] == [b"acme", b"acme"]


def test_while_the_log_is_down_completions_wait_and_those_over_the_bound_are_counted(tmp_path: Path) -> None:
    """Nobody who asks waits; once the log is back, what waited is there."""
    instance = tiny(tmp_path)
    instance.folder.parent.mkdir(parents=True, exist_ok=True)
    instance.folder.write_text("in the way")
    taking = CompletionLog(instance)
    room = instance.loaded.pipeline.serving.waiting_rows
    for number in range(room + 3):
        taking.take(called(str(number)), b"acme")
    assert (taking.recorder.counts.waiting, taking.recorder.counts.dropped) == (room, 3)
    instance.folder.unlink()
    until(lambda: taking.recorder.counts.stored == room)
    taking.recorder.close(TIMEOUT_S)
    assert (taking.recorder.counts.waiting, taking.recorder.counts.dropped) == (0, 3)
