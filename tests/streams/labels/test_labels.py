"""Late labels: the join does what a slow writing-down of the rules does, whatever comes and however it is read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from branches import START_MS, Rooms, everything, run_to_end
from hypothesis import given, settings
from hypothesis import strategies as some
from late_labels import RULES, Slow, late_fold_spec, make_late_events, x_of
from msgspec import structs

from millrace.learners.protocol import Batch
from millrace.streams.labels import join as labels
from millrace.streams.labels.identities import Identities
from millrace.streams.labels.join import LabelJoin
from millrace.streams.labels.served import LateLabel, Prediction, encode, encode_row
from millrace.streams.records import Event
from millrace.streams.state.fold import Fold

ROW = encode_row({"x": [1, 2, 3], "town": "p"})
LONG = replace(RULES, retry_ms=1 << 40)  # ids are never forgotten, which the slow rules do not know how to do


def folded(events: list[Event], rules=RULES, read_rows: int = 5):
    """A worker that has read every event, and what its learner was given."""
    rooms = Rooms(events, read_rows=read_rows)
    worker = rooms.worker(how=late_fold_spec("chain", rules))
    given_rows: list[tuple[tuple[float, ...], str]] = []
    learn = worker.fold.learner.learn_many

    def noted(batch: Batch) -> None:
        given_rows.extend((tuple(x[:3]), y) for x, y in zip(batch.x.tolist(), batch.y, strict=True))
        learn(batch)

    worker.fold.learner.learn_many = noted
    run_to_end(worker, len(events))
    waits = worker.fold.batches.state()
    if "x" in waits:
        given_rows += [(tuple(x[:3]), y) for x, y in zip(waits["x"].tolist(), waits["y"], strict=True)]
    return worker, rooms, given_rows


def as_the_rules_say(events: list[Event], rules=LONG) -> list[str]:
    """What differs from the slow rules; nothing if the join holds."""
    slow = Slow(rules)
    for event in events:
        slow.take(event)
    worker, rooms, learned = folded(events, rules)
    slow.clock(worker.fold.clock_ms)
    join = worker.fold.labels
    counts = Counter({name: getattr(join.counts, name) for name in join.counts.__struct_fields__})
    counts["settled"] = join.settled
    counts["passed"], counts["rejected"] = worker.fold.counts.passed, worker.fold.counts.rejected
    wrong = [f"{name}: {counts[name]}, not {slow.counts[name]}" for name in counts if counts[name] != slow.counts[name]]
    if learned != [(tuple(x_of(events, name).tolist()), label) for name, label in slow.learned]:
        wrong.append("other rows were learned, or in another order")
    if join.waiting != slow.waiting:
        wrong.append(f"{join.waiting} wait, not {slow.waiting}")
    if len(rooms.producer.records.get("small.dead-letters", [])) != slow.counts["rejected"]:
        wrong.append("dead letters are not those rejected")
    return wrong + ([] if worker.fold.records == len(events) else ["the fates do not add up"])


@settings(max_examples=60, deadline=None)
@given(rows=some.integers(1, 120), seed=some.integers(0, 10_000), memory=some.sampled_from([3, 10, 1000]))
def test_the_join_does_what_the_slow_rules_do(rows, seed, memory):
    """Early, twice, late, conflicting, corrected, after the horizon, crowded: same rows in the same order, same counts."""
    rules = replace(LONG, memory_rows=memory, default="a" if seed % 2 else None)
    assert as_the_rules_say(make_late_events(rows, seed), rules) == []


@settings(max_examples=25, deadline=None)
@given(seed=some.integers(0, 10_000), read_rows=some.integers(1, 40))
def test_nor_do_answers_of_this_branch_to_rows_that_another_has_answered(seed, read_rows):
    """Each is given by the state that all records before it led to; scores, losses and what waits are the same bytes."""
    asked = make_late_events(60, seed)
    events = [replace_branch(event, "elsewhere") for event in asked]
    assert events != asked
    whole, pieces = (answered_again(events, rows) for rows in (60, read_rows))
    assert everything(whole) == everything(pieces)
    assert everything(whole)["served_scores"] != everything(answered_again(asked, 60))["served_scores"]


def replace_branch(event: Event, branch: str) -> Event:
    """The same record, answered by another branch."""
    return Event(
        event.offset, event.timestamp_ms, event.key, b"", (event.value or b"").replace(b'"main"', b'"%b"' % branch.encode())
    )


def answered_again(events: list[Event], read_rows: int):
    """A worker of branch main with a ridge that has read every event."""
    worker = Rooms(events, read_rows=read_rows).worker(how=late_fold_spec("ridge", RULES))
    run_to_end(worker, len(events))
    return worker


@settings(max_examples=25, deadline=None)
@given(seed=some.integers(0, 10_000), read_rows=some.integers(1, 40))
def test_no_state_depends_on_how_records_were_grouped_into_reads(seed, read_rows):
    """Join, batches, tables, both scores: byte for byte."""
    events = make_late_events(60, seed)
    whole, _, _ = folded(events, read_rows=60)
    pieces, _, _ = folded(events, read_rows=read_rows)
    assert everything(pieces) == everything(whole)


class LearnsTwice(LabelJoin):
    """Broken: does not remember what was joined."""

    def _joined(self, slot, label, now_ms, taken):
        super()._joined(slot, label, now_ms, taken)
        self._known = Identities(1 << 40, 100)


class DefaultsWhenCrowded(LabelJoin):
    """Broken: a row that has to make room is learned with the default."""

    def _make_room(self, now_ms, taken):
        if self._pending:
            self._expire(next(iter(self._pending)), now_ms, taken)
        else:
            super()._make_room(now_ms, taken)


class LearnsTheFirst(LabelJoin):
    """Broken: of labels that wait for their prediction the first is learned, not the one with the highest revision."""

    def _another_early(self, early, revision, value, hashed):
        early.seen[revision] = hashed


@pytest.mark.parametrize("twin", [LearnsTwice, DefaultsWhenCrowded, LearnsTheFirst])
def test_a_broken_join_does_not_do_what_the_slow_rules_do(twin, monkeypatch):
    """The comparison notices a broken twin."""
    monkeypatch.setattr("millrace.streams.branch.branch.LabelJoin", twin)
    rules = replace(LONG, memory_rows=5)
    assert any(as_the_rules_say(make_late_events(100, seed), rules) for seed in range(5))


def story(*told: tuple[int, Prediction | LateLabel]) -> list[Event]:
    """Events at these milliseconds."""
    return [Event(at, START_MS + ms, None, b"", encode(record)) for at, (ms, record) in enumerate(told)]


def answer(name: str) -> Prediction:
    """A served prediction."""
    return Prediction(name, ROW, "main", 1, 3, ("a", "b"), (0.2, 0.8))


@pytest.mark.parametrize(
    ("told", "count"),
    [
        ([(0, answer("r")), (299, LateLabel("r", "b"))], "joined"),
        ([(0, LateLabel("r", "b")), (119, answer("r"))], "joined"),
        ([(0, LateLabel("r", "b")), (120, answer("r"))], "unmatched"),
        ([(0, answer("r")), (300, LateLabel("r", "b"))], "late"),
        ([(0, answer("r")), (1, LateLabel("r", "b")), (2, LateLabel("r", "b"))], "repeated"),
        ([(0, answer("r")), (1, LateLabel("r", "b")), (2, LateLabel("r", "a"))], "conflicts"),
        ([(0, answer("r")), (1, LateLabel("r", "b")), (2, LateLabel("r", "a", 1))], "corrections"),
        ([(0, answer("r")), (1, LateLabel("r", "b", 1)), (2, LateLabel("r", "a"))], "outdated"),
        ([(0, answer("r")), (1, LateLabel("r", "b", 1)), (2, LateLabel("r", "b"))], "outdated"),
        ([(0, LateLabel("r", "a")), (1, LateLabel("r", "b", 1)), (2, answer("r"))], "outdated"),
        ([(0, LateLabel("r", "b", 1)), (1, LateLabel("r", "a")), (2, answer("r"))], "outdated"),
        ([(0, LateLabel("r", "b")), (1, LateLabel("r", "b")), (2, answer("r"))], "repeated"),
        ([(0, LateLabel("r", "b")), (1, LateLabel("r", "a")), (2, answer("r"))], "conflicts"),
        ([(0, LateLabel("r", "b")), (1, answer("r")), (2, LateLabel("r", "a"))], "conflicts"),
        ([(0, LateLabel("r", "a")), (1, LateLabel("r", "b", 1)), (2, answer("r")), (3, LateLabel("r", "a"))], "repeated"),
        ([(0, LateLabel("r", "a")), (1, LateLabel("r", "b", 1)), (2, answer("r")), (3, LateLabel("r", "a", 2))], "corrections"),
        ([(0, answer("r")), (1, answer("r"))], "repeated_predictions"),
        ([(0, answer("r")), (1, LateLabel("r", "b")), (2, answer("r"))], "repeated_predictions"),
        ([(0, answer("r")), (300, answer("s")), (301, answer("r"))], "repeated_predictions"),
    ],
)
def test_each_rule_holds_to_the_millisecond(told, count):
    """A label at the horizon is late, a prediction at the end of grace finds no label; one before, they meet."""
    worker, _, _ = folded(story(*told))
    assert getattr(worker.fold.labels.counts, count) == 1
    assert as_the_rules_say(story(*told)) == []


class GoesByRecords(LabelJoin):
    """Broken: every record is a prediction of its own."""

    def take(self, served, clock_ms):
        return super().take(replace(served, ids=np.array([event.offset for event in served.events])), clock_ms)


@pytest.mark.parametrize("read_rows", [1, 5])
@pytest.mark.parametrize(("join", "waiting"), [(LabelJoin, 1), (GoesByRecords, 2)])
def test_a_row_that_two_replicas_answered_under_one_id_waits_once(join, waiting, read_rows, monkeypatch):
    """As where a request is tried again: the first answer stays, though the second is of a later state and scores otherwise."""
    monkeypatch.setattr("millrace.streams.branch.branch.LabelJoin", join)
    again = structs.replace(answer("r"), seq=4, scores=(0.9, 0.1))
    worker, _, _ = folded(story((0, answer("r")), (1, again)), read_rows=read_rows)
    labels_join = worker.fold.labels
    assert (labels_join.waiting_predictions, labels_join.counts.repeated_predictions) == (waiting, 2 - waiting)
    if waiting == 1:
        assert labels_join.parts()["join"]["scores"].tolist() == [0.2, 0.8]
        worker, _, learned = folded(story((0, answer("r")), (1, again), (2, LateLabel("r", "b"))), read_rows=read_rows)
        assert learned == [((1.0, 2.0, 3.0), "b")] and worker.fold.labels.waiting == 0


@pytest.mark.parametrize("first", [0, 1])
def test_a_higher_revision_that_waits_is_the_one_that_is_learned(first):
    """A correction that comes before its prediction needs no correcting afterwards, whichever of the two comes first."""
    told = [LateLabel("r", "a"), LateLabel("r", "b", 1)]
    worker, _, learned = folded(story((0, told[first]), (1, told[1 - first]), (2, answer("r"))))
    assert learned == [((1.0, 2.0, 3.0), "b")]
    assert (worker.fold.labels.counts.joined, worker.fold.labels.settled) == (1, 2)


def test_the_revisions_of_one_waiting_label_count_towards_the_bound():
    """However many a client sends for an id that was never served, memory stays bounded and the fates add up."""
    events = story(*[(0, LateLabel("r", "b", revision)) for revision in range(300)], (1, answer("s")))
    worker, _, _ = folded(events)
    parts = worker.fold.labels.parts()
    assert sum(len(seen) for *_, seen in parts["join"]["early"]) <= RULES.memory_rows
    assert worker.fold.records == 301 and worker.fold.labels.waiting_predictions == 1


def test_labels_of_ids_that_were_never_served_do_not_push_predictions_out():
    """The kind that has more of them makes room."""
    events = story(*[(0, answer(f"r{at}")) for at in range(10)], *[(1, LateLabel(f"s{at}", "b")) for at in range(200)])
    worker, _, _ = folded(events)
    assert (worker.fold.labels.waiting_predictions, worker.fold.labels.waiting_labels) == (10, 30)


def test_a_conflict_is_a_dead_letter_with_its_reason():
    """The record as it was, and the first label stays."""
    events = story((0, answer("r")), (1, LateLabel("r", "b")), (2, LateLabel("r", "a")))
    _, rooms, learned = folded(events)
    letters = rooms.producer.records["small.dead-letters"]
    assert [letter.value for letter in letters] == [events[2].value] and b"conflicting-label" in letters[0].headers
    assert learned == [((1.0, 2.0, 3.0), "b")]


def test_scores_are_those_of_the_prediction_as_it_was_served():
    """They are counted apart from the worker's own, of which there is none here."""
    events = story((0, answer("r")), (1, answer("s")), (2, LateLabel("r", "b")), (3, LateLabel("s", "a")))
    worker, rooms, _ = folded(events)
    output = json.loads(rooms.producer.records["small.scores"][-1].value)
    assert (output["served_scores"]["rows"], output["served_scores"]["correct"], output["scores"]["rows"]) == (2, 1, 0)
    assert output["records"] == sum(output["counts"].values()) + output["waiting"] == 4
    assert worker.fold.counts.learned + worker.fold.batches.waiting == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"kind":"label","id":"r","label":1.5}', "wrong-type"),
        (b'{"kind":"label","id":"r","label":"a","label":"b"}', "duplicate-field"),
        (b'{"kind":"label","id":"r","label":"a","when":1}', "unknown-field"),
        (b'{"kind":"label","id":"r"}', "missing-field"),
        (encode(answer("r")).replace(b'"town":"p"', b'"town":"p","kind":"a"'), "unknown-field"),
        (encode(answer("r")).replace(b'"x":[1,2,3]', b'"x":[1,2]'), "wrong-shape"),
        (encode(answer("r")).replace(b"[0.2,0.8]", b"[0.2]"), "wrong-shape"),
        (encode(answer("r")).replace(b'"seq":3', b'"seq":3,"seq":4'), "duplicate-field"),
    ],
)
def test_a_record_that_cannot_be_meant_is_refused_with_its_reason(value, reason):
    """Nothing is coerced, and a served row has no label of its own."""
    _, refused = late_fold_spec().reader.decode([Event(0, START_MS, None, b"", value)], "list:0")
    assert [rejection.reason for rejection in refused] == [reason]


def test_a_key_that_is_not_the_id_is_refused():
    """Else nothing keeps the records of an id in order."""
    value = encode(LateLabel("r", "a"))
    _, refused = late_fold_spec().reader.decode([Event(0, START_MS, b"s", b"", value)], "list:0")
    assert [rejection.reason for rejection in refused] == ["wrong-key"]


def test_waiting_predictions_are_bounded():
    """Past the bound the oldest is passed before its time, counted, and its label is late."""
    events = story(*[(at, answer(f"r{at}")) for at in range(60)], (61, LateLabel("r0", "b")))
    worker, _, _ = folded(events)
    join = worker.fold.labels
    assert (join.waiting, join.counts.crowded, join.counts.late) == (40, 20, 1)


def test_a_pipeline_without_late_labels_has_no_part_for_them():
    """Its state and its hash are what they were."""
    rooms = Rooms([])
    assert not any(name.startswith("join") or name == "served_scores" for name in rooms.worker().fold.parts())
    assert isinstance(rooms.worker().fold, Fold) and labels.SEGMENTS == 8
