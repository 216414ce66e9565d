"""Labels of `millrace up`, a call each, beside one process that commits the same records in groups of the recorder's size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from results import compared

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.streams.labels.served import LateLabel, encode
from millrace.streams.records import Record, tp_name
from millrace.streams.sqlite.log import SqliteLog

TABLES = "\n[labels]\nhorizon_ms = 60000\n"
CONNECTIONS = 32
ID = "a row that nobody asked about"  # so its label waits for a while and is let go
GOAL = 0.7

Called = Callable[[Path, int, float], dict[str, float]]  # the request's file, connections, seconds -> what the callers saw


def label_lines(folder: Path, called: Called, rounds: int, seconds: float) -> Iterator[dict[str, object]]:
    """One line; ``group`` is how many records a commit had, in the middle of the rounds."""
    instance = Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")
    log, topic, request = instance.log(), instance.loaded.pipeline.served_topic, folder / "label.http"
    assert isinstance(log, SqliteLog)
    pairs, groups = list[tuple[float, float]](), list[int]()
    request.write_text(f'{{"labels": [{{"id": "{ID}", "label": 3}}]}}', encoding="utf-8")
    for _ in range(rounds):
        _, start = log.bounds(tp_name(topic, 0))
        rate = called(request, CONNECTIONS, seconds)["rate"]
        groups.append(group_size(log, tp_name(topic, 0), start))
        pairs.append((rate, bare_rate(folder / f"bare-{len(pairs)}.sqlite", groups[-1], seconds)))
    peer = f"one process that commits {sorted(groups)[len(groups) // 2]} at a time"
    yield compared("serve", f"labels, {CONNECTIONS} connections, one a call", "labels/s", pairs, (peer, GOAL)) | {
        "groups": groups
    }


def group_size(log: SqliteLog, tp: str, start: int) -> int:
    """Records a commit since an offset, told apart by their time in ms; so at most too many."""
    _, end = log.bounds(tp)
    times, at = list[int](), start
    while at < end:
        events, _ = log.fetch(tp, at, end, 10_000)
        times += [event.timestamp_ms for event in events]
        at = events[-1].offset + 1
    return max(1, round(len(times) / len(set(times))))


def bare_rate(file: Path, group: int, seconds: float) -> float:
    """Records a second of a process that appends groups of this size and does nothing else."""
    record, log, stored = Record(encode(LateLabel(ID, 3)), ID.encode()), SqliteLog(file), 0
    log.create_topic("bench.served")
    start_s = time.perf_counter()
    while (took_s := time.perf_counter() - start_s) < seconds:
        log.append("bench.served", [record] * group)
        stored += group
    log.close()
    return stored / took_s
