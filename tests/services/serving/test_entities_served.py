"""Entities behind an endpoint: what a replica in another process answered from is what is learned, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from entity_cards import (
    IDLE_MS,
    LATE,
    MOST,
    RECORDED,
    WINDOW,
    Told,
    declared,
    instance,
    learned,
    payments,
    same,
    slow_windows,
    text,
    unclocked,
)
from entity_cards import windows_of as windows_in
from pipelines import facts, here
from served_pipeline import Up, served, until
from slow_past import SlowEvent, SlowWindows, slow_fields

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
import grpc
from label_calls import called, label, settled

from millrace.services.pipeline.instance import Instance
from millrace.services.protocol import inference_pb2 as pb
from millrace.streams.branch.branch import load_checkpoint
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import entries_after, summarise
from millrace.streams.records import Record

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("entities")]
CARDS = ["card 1", "card 2", "card 1"]  # of one request: two of its rows are of one card


def request(first: int, observe: bool | None) -> dict[str, Any]:
    """Three rows that say no time."""
    numbers = [first, first + 1, first + 2]
    body: dict[str, Any] = {
        "inputs": [
            {"name": "card", "datatype": "BYTES", "shape": [3], "data": CARDS},
            {"name": "row", "datatype": "FP64", "shape": [3], "data": numbers},
            {"name": "amount", "datatype": "FP64", "shape": [3], "data": [0.1 * number for number in numbers]},
            {"name": "id", "datatype": "BYTES", "shape": [3], "data": [f"r{number}" for number in numbers]},
        ]
    }
    return body if observe is None else body | {"parameters": {"observe": observe}}


def by_grpc(up: Up, first: int, observe: bool | None) -> None:
    """The same over gRPC."""
    body = request(first, None)
    message = pb.ModelInferRequest(model_name="digits")
    for tensor in body["inputs"]:
        contents = message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]).contents
        if tensor["datatype"] == "BYTES":
            contents.bytes_contents.extend(cell.encode() for cell in tensor["data"])
        else:
            contents.fp64_contents.extend(tensor["data"])
    if observe is not None:
        message.parameters["observe"].bool_param = observe
    with grpc.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        infer(message)


def test_what_was_answered_from_is_learned_and_windows_are_those_of_the_log(tmp_path: Path) -> None:
    """Over both protocols, with two events of a card in one request, what-if calls, late labels, a rollback and a proof."""
    (tmp_path / "digits.toml").write_text(text(events='events = "requests"', more=LATE + RECORDED), encoding="utf-8")
    pipeline = instance(tmp_path)
    rows = payments(100)
    records = [Record(json.dumps({k: v for k, v in row.items() if k != "t"}).encode(), None, b"", row["t"]) for row in rows]
    pipeline.log().append("digits", records)
    assert here("run", "digits.toml", cwd=tmp_path).exit_code == 0
    before = int(facts(tmp_path)["learned"])
    asked = 24
    with served(tmp_path) as up:
        assert called(up, "infer", request(1, True) | {"parameters": {"observe": "no"}})[0] == 400
        for turn in range(asked):
            observe = [None, True, False][turn % 3]
            if turn % 2:
                by_grpc(up, 1000 + 3 * turn, observe)
            else:
                assert called(up, "infer", request(1000 + 3 * turn, observe))[0] == 200
            if turn == asked // 2:
                until(lambda: int(facts(tmp_path).get("entity_events_moved", 0)) > 10)
        told = [f"r{1000 + at}" for at in range(3 * asked)]
        label(up, {"labels": [{"id": name, "label": "yes" if at % 2 else "no"} for at, name in enumerate(told)]})
        settled(up, labels_joined=3 * asked)
        version = str(facts(tmp_path)["version"])
        assert here("rollback", "digits.toml", version, "--reason", "bad", "--yes", cwd=tmp_path).exit_code == 0
        until(lambda: called(up, "infer", request(1, False))[2].get("model_version") == version)
    answered = predictions(pipeline)
    recorded = {int(record["row"]["row"]): [NAN if n is None else n for n in record["past"]] for record, _ in answered}
    got = [(number, past) for number, past in learned(pipeline) if number >= 1000]
    assert len(got) == int(facts(tmp_path)["learned"]) - before > 2 * asked, "what is left waits for its batch"
    assert same(got, [(number, recorded[number]) for number, _ in got])
    own, windows = slowly(pipeline)
    chosen = {number for number, _ in got}
    assert not same(sorted(got), sorted(pair for pair in own if pair[0] in chosen)), (
        "the fold's own fields know of events that no answer could know of"
    )
    mark = summarise(pipeline.journal("main"), "main").marks[-1]
    assert unclocked(windows_in(load_checkpoint(pipeline.store(), mark))) == unclocked(slow_windows(windows))
    assert here("verify", "digits.toml", cwd=tmp_path).exit_code == 0


NAN = math.nan


def predictions(pipeline: Instance) -> list[tuple[dict[str, Any], int]]:
    """Served rows in the order in which they were read, each with its record's time."""
    return [(row, t) for tp, row, t in all_read(pipeline) if row.get("kind") == "prediction" and tp.startswith("digits.served")]


def all_read(pipeline: Instance) -> Sequence[tuple[str, dict[str, Any], int]]:
    """Every record that the branch has read: partition, what it holds, its time."""
    backends = pipeline.backends("main")
    told = []
    for entry in entries_after(backends.journal, "main", 0):
        for tp, start, stop, _, _ in entry.reads if isinstance(entry, Step) else ():
            events = backends.source.read(tp, start, stop).events
            told += [(tp, json.loads(event.value or b""), event.timestamp_ms) for event in events]
    return told


def slowly(pipeline: Instance) -> tuple[Told, SlowWindows]:
    """What the fold's own windows say of each served row, and the windows after all that was read."""
    windows, told, clock = SlowWindows(WINDOW, IDLE_MS, MOST), Told(), 0
    for tp, record, t in all_read(pipeline):
        clock = max(clock, t)
        is_served = tp.startswith("digits.served")
        if is_served and record["kind"] != "prediction":
            continue
        row = record["row"] if is_served else record
        at = row.get("at")
        at = t if at is None else int(at)
        amount = NAN if row["amount"] is None else float(row["amount"])
        identity = record["id"] if is_served else (row["row"], amount)
        counts = is_served and at <= t + 5000 and record.get("observe", True)
        seen = windows.row(row["card"], SlowEvent(at, (amount,), identity), clock, counts)
        if is_served:
            told.append((int(row["row"]), slow_fields(declared(), ["amount"], seen, at)))
    windows.let_go(clock)
    return told, windows
