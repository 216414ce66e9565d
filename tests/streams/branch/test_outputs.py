"""What a branch has let out: the newest of it is found, whoever was late."""

from __future__ import annotations

import pytest
from branches import Rooms, make_events, run_to_end

from millrace.streams.branch.outputs import last_output, scores_topic
from millrace.streams.errors import DamageError
from millrace.streams.records import Record

TOPIC = scores_topic("small", "main")


def test_an_older_output_that_came_late_is_not_the_newest() -> None:
    """A writer that was frozen lets its last one out after its heir's."""
    rooms = Rooms(make_events(60))
    worker = rooms.worker()
    run_to_end(worker, 60)
    newest = last_output(rooms.producer, "small", "main")
    assert newest is not None and newest.records == 60
    older = rooms.producer.records[TOPIC][-3]
    rooms.producer.append(TOPIC, [older])
    assert last_output(rooms.producer, "small", "main") == newest


def test_another_branch_has_the_last_word_of_its_own() -> None:
    """Outputs of the branch that was live before say nothing about the one that goes on; damage is said."""
    rooms = Rooms(make_events(60))
    run_to_end(rooms.worker(), 60)
    assert last_output(rooms.producer, "small", "other") is None
    rooms.producer.append(TOPIC, [Record(b"{}")])
    with pytest.raises(DamageError, match=f"topic {TOPIC} is no output of ours"):
        last_output(rooms.producer, "small", "main")
