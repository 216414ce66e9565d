"""A request that the front tries again on another replica is recorded under the same ids, so that each row waits once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from grpc_calls import FakeCall, asked, rows_of
from pipelines import TIMEOUT_S
from served_bundles import NUMBERS, infer, numbers_parts, tensor

from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import Endpoint, Recording, features_name
from millrace.services.endpoint.grpc import GrpcApp
from millrace.services.endpoint.http import HttpApp
from millrace.services.endpoint.recording import Recorder
from millrace.services.pipeline.bundle import Identity, open_parts
from millrace.streams.labels.join import LabelJoin, LabelRules
from millrace.streams.labels.served import LONGEST_ID, Served, ServedCodec
from millrace.streams.sqlite.log import SqliteLog

TOPIC = "digits.served"
X = np.array([[1.0, 2.0, 3.0], [-4.0, 0.5, 0.0]])
FIRST, SECOND = "0a8eb2ec-36ac-4d1d-b9a1-4c8e0e3b7c55", "5b0c1a52-9d0e-4a43-8f58-0d3c0fb4f3ce"
each_protocol = pytest.mark.parametrize("protocol", ["http", "grpc"])


class Log:
    """What replicas that share a log have put into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened().create_topic(TOPIC)

    def _opened(self) -> SqliteLog:
        return SqliteLog(self.path)

    def replica(self, seq: int) -> Endpoint:
        """One that answers from a state of its own, and has each answer in the log before the reply."""
        bundle = open_parts(numbers_parts(identity=Identity("main", 2, seq)), NUMBERS)
        recorder = Recorder(self._opened, TOPIC, ServingConfig(log_s=float(TIMEOUT_S)))
        return Endpoint("digits", NUMBERS, lambda: bundle, recording=Recording(recorder, features_name(NUMBERS), True))

    def served(self) -> Served:
        """As the worker reads it."""
        served, refused = ServedCodec(NUMBERS, 1 << 20, TOPIC).decode(
            self._opened().fetch(f"{TOPIC}:0", 0, None, 99)[0], f"{TOPIC}:0"
        )
        assert not refused and isinstance(served, Served)
        return served

    def ids(self) -> list[str]:
        """Of the rows, in the order in which they were recorded."""
        return [record.id for record in self.served().records]

    def joined(self) -> LabelJoin:
        """What waits for a label once all of it is read."""
        join, served = LabelJoin(LabelRules(), NUMBERS.label, features_name(NUMBERS)), self.served()
        join.take(served, np.arange(len(served.records), dtype=np.int64))
        return join


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """An empty one."""
    return Log(tmp_path / "log.sqlite")


def ask(protocol: str, replica: Endpoint, front_id: str | None, named: str = "", behind_front: bool = True) -> str:
    """Two rows without ids of their own, asked of one replica by the front; the id of its answer."""
    shown = {"x-millrace-peer": "127.0.0.1"} | ({} if front_id is None else {"x-millrace-id": front_id})
    if protocol == "http":
        request = {"inputs": [tensor("x", "FP64", [2, 3], X.tolist())]} | ({"id": named} if named else {})
        heard = infer(HttpApp(replica, behind_front), request, **shown)
        assert heard.status == 200, heard.json
        answer_id = heard.json["id"]
    else:
        context, raw = FakeCall("unix:", tuple(shown.items())), asked(rows_of(X), id=named).SerializeToString()
        answer_id = asyncio.run(GrpcApp(replica, behind_front).answer("ModelInfer", raw, context)).id
        assert context.code == "OK", context.details
    replica.recording.recorder.close(TIMEOUT_S)
    return answer_id


@each_protocol
def test_a_request_that_was_tried_twice_waits_once(protocol: str, log: Log) -> None:
    """Each replica appends it; the second record of an id is counted and waits for nothing."""
    answer_ids = [ask(protocol, log.replica(seq), FIRST) for seq in (41, 43)]
    assert log.ids() == [f"{answer_id}/{row}" for answer_id in answer_ids for row in (0, 1)]
    assert answer_ids == [FIRST.replace("-", "")] * 2
    join = log.joined()
    assert (join.waiting_predictions, join.counts.repeated_predictions) == (2, 2)


@each_protocol
def test_where_each_try_makes_ids_of_its_own_it_waits_twice(protocol: str, log: Log) -> None:
    """The twin: the rule as it was, which an application that stands behind no front still has."""
    for seq in (41, 43):
        ask(protocol, log.replica(seq), FIRST, behind_front=False)
    join = log.joined()
    assert (join.waiting_predictions, join.counts.repeated_predictions) == (4, 0)
    assert not any(FIRST.replace("-", "") in row_id for row_id in log.ids()), "and nobody chooses ids by the front's header"


@each_protocol
def test_requests_that_only_look_alike_wait_each(protocol: str, log: Log) -> None:
    """The front gives each its own id, so the same rows asked twice by a caller are two."""
    for front_id in (FIRST, SECOND):
        ask(protocol, log.replica(41), front_id)
    join = log.joined()
    assert (join.waiting_predictions, join.counts.repeated_predictions) == (4, 0)


@each_protocol
def test_an_id_of_the_callers_comes_before_the_fronts(protocol: str, log: Log) -> None:
    """Its labels are sent by that."""
    assert ask(protocol, log.replica(41), FIRST, named="r7") == "r7"
    assert log.ids() == ["r7/0", "r7/1"]


def shapes(log: Log) -> Iterator[str]:
    """The shape of each id: digits instead of what they are."""
    for row_id in log.ids():
        yield re.sub(r"[0-9a-f](?=.*/)", "h", row_id)


@each_protocol
def test_ids_look_alike_whoever_made_them(protocol: str, log: Log) -> None:
    """32 hex digits and the row's number, well within the longest id; so too where a front gave none."""
    for front_id, behind_front in ((FIRST, True), (None, True), (FIRST, False)):
        ask(protocol, log.replica(41), front_id, behind_front=behind_front)
    assert list(shapes(log)) == ["h" * 32 + "/0", "h" * 32 + "/1"] * 3
    assert len({row_id.partition("/")[0] for row_id in log.ids()}) == 3
    assert 32 + len(f"/{ServingConfig().max_rows}") <= LONGEST_ID
