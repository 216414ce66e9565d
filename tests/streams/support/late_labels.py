"""A small pipeline whose labels come late, and the rules of the join written down once more, slowly."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
from branches import SCHEMA, START_MS, fold_spec

from millrace.streams.branch.branch import FoldSpec
from millrace.streams.labels.join import LabelRules
from millrace.streams.labels.served import LateLabel, Prediction, ServedCodec, encode, encode_row
from millrace.streams.records import Event

RULES = LabelRules(horizon_ms=300, default="a", grace_ms=120, retry_ms=200, memory_rows=40)


def late_fold_spec(learner: str = "ridge", rules: LabelRules = RULES) -> FoldSpec:
    """The small pipeline with late labels; in tests its one topic is the served one."""
    return replace(fold_spec(learner), labels=rules, served=ServedCodec(SCHEMA, 4096, "list"))


def prediction(name: str, chance: random.Random) -> bytes:
    """An answer."""
    row = {"x": [chance.randrange(-4, 5) for _ in range(3)], "town": chance.choice("pqrstu"), "w": chance.choice([1, 2])}
    row |= {"age": chance.randrange(18, 80)} if chance.random() < 0.7 else {}
    classes = chance.choice([("a", "b"), ("a", "b", "c"), ()])
    return encode(Prediction(name, encode_row(row), "main", 1, 3, classes, tuple(chance.random() for _ in classes)))


def make_late_events(rows: int, seed: int = 0) -> list[Event]:
    """Predictions and labels as a careless world sends them."""
    chance = random.Random(seed)
    now_ms, events = START_MS, []
    for at in range(rows):
        now_ms += chance.choice([0, 5, 20, 20, 60]) + (400 if chance.random() < 0.04 else 0)
        name = f"r{max(0, at // 2 + chance.randrange(-6, 3))}"
        fate = chance.random()
        value = prediction(name, chance)
        if fate > 0.47:
            value = encode(LateLabel(name, chance.choice("aab"), chance.choice([0, 0, 0, 1])))
        if fate > 0.96:
            value = b'{"kind":"label"'
        events.append(Event(at, now_ms - chance.choice([0, 0, 30]), None, b"", value))
    return events


class Slow:
    """The rules row by row: dicts, no buckets, nothing clever."""

    def __init__(self, rules: LabelRules) -> None:
        self.rules, self.now = rules, 0
        self.pending, self.early, self.known = {}, {}, {}
        self.counts, self.learned = Counter(), []

    def clock(self, now_ms: int) -> None:
        self.now = now_ms = max(now_ms, self.now)
        for name in [name for name, (_, due) in self.pending.items() if due <= now_ms]:
            del self.pending[name]
            self.known[name] = [(None, None, now_ms)]
            if self.rules.default is None:
                self.counts.update(["unlabelled", "passed"])
            else:
                self.learned.append((name, self.rules.default))
                self.counts["defaulted"] += 1
        for name in [name for name, (_, due) in self.early.items() if due <= now_ms]:
            del self.early[name]
            self.counts.update(["unmatched", "settled"])

    def crowd(self) -> None:
        seen = sum(len(came) for came, _ in self.early.values())
        if len(self.pending) + seen <= self.rules.memory_rows:
            return
        self.counts["crowded"] += 1
        if seen > len(self.pending):
            del self.early[next(iter(self.early))]
            self.counts.update(["unmatched", "settled"])
        else:
            name = next(iter(self.pending))
            del self.pending[name]
            self.known[name] = [(None, None, self.now)]
            self.counts["passed"] += 1

    def take(self, event: Event) -> None:
        try:
            record = json.loads(event.value)
        except ValueError:
            self.counts["rejected"] += 1
            return
        self.clock(event.timestamp_ms)
        name = record["id"]
        if record["kind"] == "prediction":
            self.predict(name)
        else:
            self.label(name, record["revision"], record["label"])

    def predict(self, name: str) -> None:
        if name in self.pending or name in self.known:
            self.counts.update(["repeated_predictions", "passed"])
        elif name in self.early:
            seen, _ = self.early.pop(name)
            self.known[name] = [(*entry, self.now) for entry in seen]
            self.join(name, max(seen)[1])
        else:
            self.pending[name] = (None, self.now + self.rules.horizon_ms)
            self.crowd()

    def join(self, name: str, label: str) -> None:
        self.learned.append((name, label))
        self.counts.update(["joined", "settled"])

    def label(self, name: str, revision: int, label: str) -> None:
        if name in self.pending:
            del self.pending[name]
            self.known[name] = [(revision, label, self.now)]
            self.join(name, label)
            return
        if name not in self.early and name not in self.known:
            self.early[name] = ([(revision, label)], self.now + self.rules.grace_ms)
            self.crowd()
            return
        seen = self.early[name][0] if name in self.early else [entry[:2] for entry in self.known[name]]
        revisions = [number for number, _ in seen]
        if (revision, label) in seen:
            fate = "repeated"
        elif revision in revisions:
            self.counts.update(["conflicts", "rejected"])
            return
        elif None in revisions:
            fate = "late"
        elif name in self.early:
            fate = "outdated"  # of the two, the one with the lower revision
        else:
            fate = "corrections" if revision > max(revisions) else "outdated"
        self.counts.update([fate, "settled"])
        if name in self.early and fate == "outdated":
            seen.append((revision, label))
            self.crowd()
        elif fate in ("corrections", "outdated"):
            self.known[name].append((revision, label, self.now))

    @property
    def waiting(self) -> int:
        return len(self.pending) + len(self.early)


def x_of(events: list[Event], name: str) -> np.ndarray:
    """The numbers that were served first under an id."""
    for event in events:
        record = json.loads(event.value) if event.value.endswith(b"}") else {}
        if record.get("kind") == "prediction" and record["id"] == name:
            return np.array(record["row"]["x"], dtype=float)
    raise KeyError(name)
