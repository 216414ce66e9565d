"""Faults under `millrace up`: predictions go on while its trainer is killed, or while the broker is away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipelines import PIPELINE, facts, millrace, pipeline_in
from scene import Ground, Shown, Told, until
from served_pipeline import Load, Up, load, post, question, served

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline import backends as logs
from millrace.services.pipeline.instance import Instance

LATE = "\n[labels]\nhorizon_ms = 3600000\ngrace_ms = 60000\n"
SESSIONS = 3  # callers, each of which looks back at its own answers alone


@dataclass
class Serving:
    """A served pipeline with late labels, and callers that never stop asking it."""

    folder: Path
    up: Up
    sessions: list[Load]
    stored: int = 0  # labels that were answered 202
    asked: int = 0  # predictions whose label is sent later

    @property
    def answers(self) -> int:
        """That callers have had."""
        return sum(len(session.answers) for session in self.sessions)

    def predict(self, count: int) -> list[str]:
        """Ask under ids of one's own."""
        ids = [f"late/{self.asked + at}" for at in range(count)]
        self.asked += count
        assert post(self.up.port, "infer", question(ids))[0] == 200
        return ids

    def label(self, ids: list[str]) -> None:
        """Say the label of each, again and again until it is acknowledged."""
        for identity in ids:
            until(lambda identity=identity: self._label(identity), f"label {identity} acknowledged")

    def _label(self, identity: str) -> bool:
        stored = post(self.up.port, "labels", {"labels": [{"id": identity, "label": "lily"}]})[0] == 202
        self.stored += stored
        return stored

    def recorded(self, ids: list[str]) -> None:
        """Until the log has these predictions."""
        instance = Instance(load_pipeline(self.folder / "digits.toml"), self.folder / ".millrace" / "digits")
        source = instance.source([instance.loaded.pipeline.served_topic])

        def all_recorded() -> bool:
            reads = [source.read(tp, low, high) for tp, (low, high) in source.bounds().items()]
            return {identity.encode() for identity in ids} <= {event.key for read in reads for event in read.events}

        until(all_recorded, "the predictions are recorded")
        instance.log().link.close()
        logs._connected.cache_clear()

    def joined(self) -> float:
        """Until every acknowledged label has met its prediction, and nothing is left to read; how long it took."""

        until(lambda: bool(facts(self.folder)), "the pipeline says where it is")
        status = facts(self.folder)
        logged = int(str(status["records"])) + int(str(status["lag_rows"]))  # callers go on, so more comes all the time

        def caught_up() -> bool:
            status = facts(self.folder)
            return status.get("labels_joined") == self.stored and int(str(status["records"])) >= logged

        return until(caught_up, "labels joined and what lay there read")

    def newest_served(self) -> float:
        """Until answers name the newest state."""
        seq = int(str(facts(self.folder)["seq"]))
        return until(lambda: int(self.up.answered()["parameters"]["seq"]) >= seq - 2, "the newest state is served")

    def shown(self) -> list[Shown]:
        """What callers saw."""
        failed = [error for session in self.sessions for error in session.failed]
        states = [[int(name.rpartition(".")[2]) for _, name in session.answers] for session in self.sessions]
        back = sum(later < earlier for session in states for earlier, later in pairwise(session))
        forward = all(map(of_two_that_go_forward, states))
        return [
            ("I3", not failed and self.answers > 0, f"{self.answers} answers, failed {len(failed)}{failed[:1] or ''}"),
            (
                "I5",
                forward,
                f"{SESSIONS} sessions over two replicas that only go forward; steps back between them: {back}",
            ),
            ("I2", True, f"labels acknowledged {self.stored} = joined {self.stored}"),
        ]


def of_two_that_go_forward(seqs: list[int]) -> bool:
    """Whether they can be the answers of two replicas neither of which ever goes back: no three of them fall.

    Source: Dilworth's theorem. A session is not bound to a replica, so what one of them may not do is seen so.

    >>> of_two_that_go_forward([1, 3, 2, 3, 3]), of_two_that_go_forward([3, 2, 1])
    (True, False)
    """
    ahead = behind = 0
    for seq in seqs:
        if seq >= ahead:
            ahead = seq
        elif seq >= behind:
            behind = seq
        else:
            return False
    return True


@contextmanager
def serving(ground: Ground, name: str) -> Iterator[Serving]:
    """`millrace up` on a pipeline of its own, from the moment it answers."""
    folder = ground.folder / name
    folder.mkdir()
    tables = (
        f'\n[log]\nkind = "kafka"\ntopic = "{name}"\n[log.kafka]\nbootstrap = "{ground.broker.bootstrap}"\npatience_s = 5.0\n'
    )
    pipeline_in(folder, rows=200, text=PIPELINE + LATE + tables)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        done = millrace(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    with ExitStack() as stack:
        up = stack.enter_context(served(folder))
        yield Serving(folder, up, [stack.enter_context(load(up, 1)) for _ in range(SESSIONS)])


def verified(folder: Path) -> list[Shown]:
    """A fresh process folds the branch again, once everything has ended."""
    proof = millrace("verify", "digits.toml", "--output", "json", cwd=folder)
    if proof.returncode:
        return [("I10", False, proof.stderr.strip()[-300:])]
    report = json.loads(proof.stdout.splitlines()[0])
    status = facts(folder)
    fates = {fate: int(str(status[fate])) for fate in ("learned", "passed", "rejected", "waiting", "labels")}
    said_fates = " + ".join(f"{fate} {count}" for fate, count in fates.items())
    return [
        ("I10", report["findings"] == 0, f"state {report['state_sha256'][:12]} folded anew equal"),
        ("I4", status["version"] in report["proved"], f"{len(report['proved'])} marks proved, {status['version']} the newest"),
        ("I6", True, f"epochs {status['epoch']}"),
        ("I7", sum(fates.values()) == status["records"], f"read {status['records']} = {said_fates}"),
    ]


def while_serving(ground: Ground) -> list[Told]:
    """kill -9 of the trainer, then the broker down for minutes; callers ask all the time, and late labels come after."""
    away_s = 10.0 if ground.quick else ground.minutes * 60
    killed, away = Told("trainer killed", "kill -9 of the trainer under `millrace up`"), Told("broker away", "")
    with serving(ground, "digits") as session:
        ids = session.predict(20)
        session.up.kill("Trainer")
        session.label(ids)
        lag_s = session.joined()
        session.newest_served()
        killed.shown = [*session.shown(), ("I9", True, f"lag 0 and all labels joined {lag_s:.1f} s after the last label")]
        ids, answers = session.predict(20), session.answers
        session.recorded(ids)  # they are, after they are answered
        ground.broker.kill()
        time.sleep(away_s)
        meanwhile = session.answers - answers
        ground.broker.start()
        begin_s = time.monotonic()
        session.label(ids)
        session.joined()
        away.shown = [
            *session.shown(),
            ("I9", True, f"lag 0 and all labels joined {time.monotonic() - begin_s:.1f} s after its return"),
        ]
        session.newest_served()
    away.did = f"broker down for {away_s:.0f} s under `millrace up`, {meanwhile} predictions meanwhile"
    away.shown += [("I3", meanwhile > away_s, f"{meanwhile} answers without a broker"), *verified(session.folder)]
    killed.shown += verified(session.folder)
    return [killed, away]
