"""What drafts for a stream of completions, and how it did: each completion is counted first, and learned then.

An engine at temperature 0 answers the same whatever drafts, so each prompt was answered once. An arm with a draft replays the
answers with the newest draft it has, as if every step of learning were swapped in at once, and learns from those counts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from answered import TOP, K, batch_of, pair_folder
from draft_engines import Answer
from draft_streams import Stream

from millrace.learners.draft.completion import Completion, pack, unpack
from millrace.learners.draft.config import DraftConfig, Start
from millrace.learners.draft.folder import fingerprint
from millrace.learners.draft.learner import Draft

OURS = {"rate": 2e-3, "recent_share": 0.5}  # as in examples/llm/llm.toml
OSD = {"draws": 0, "updates": 1, "step_completions": 8, "clip": 1e9}  # one step for eight completions, which then go
EIGHT = 8  # steps, for which as many completions go through the draft as with our settings
PAPER = 1e-4  # the rate that OSD had with these eight, for a draft of 160 M
ARMS: Mapping[str, dict[str, Any]] = {
    "static draft": {},
    "OSD as published": {**OSD, "positions": "osd-published", "rate": PAPER},
    "OSD as published, our rate": {**OSD, "positions": "osd-published", "rate": OURS["rate"]},
    "OSD as published, our rate, eight steps": {**OSD, "positions": "osd-published", "rate": OURS["rate"], "updates": EIGHT},
    "OSD as coded": {**OSD, "positions": "osd-coded", "rate": PAPER},
    "OSD as coded, our rate": {**OSD, "positions": "osd-coded", "rate": OURS["rate"]},
    "ours": OURS,
}
STATIC = 64  # completions that the draft which never learns replays at once
WINDOW = 32  # completions over which tau is taken
PLATEAU = 0.25  # of a segment: its last quarter
NEAR = 0.95  # of the plateau


@dataclass
class Run:
    """Counts of each completion of a stream."""

    tokens: list[int] = field(default_factory=list)  # of the answer behind its first, which no step gives
    steps: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    tested: list[int] = field(default_factory=list)
    learn_s: float = 0.0  # processor time of learning
    probes: list[float] = field(default_factory=list)  # tau of the probes at the end of each segment

    def count(self, tokens: int, steps: int, accepted: int, tested: int) -> None:
        """One completion more."""
        for numbers, number in zip(
            (self.tokens, self.steps, self.accepted, self.tested), (tokens, steps, accepted, tested), strict=True
        ):
            numbers.append(number)

    def tau(self, part: slice = slice(None)) -> float:
        """Tokens a step."""
        return sum(self.tokens[part]) / max(1, sum(self.steps[part]))

    def alpha(self) -> float:
        """Accepted of tested positions; 0 where nothing was drafted."""
        return sum(self.accepted) / max(1, sum(self.tested))


def start() -> Start:
    """The chat draft, for the target's completions."""
    folder = pair_folder("draft_chat")
    return Start(str(folder), fingerprint(folder), fingerprint(pair_folder("target")), K, TOP)


def learned(settings: Mapping[str, Any], values: Sequence[bytes], stream: Stream, probes: Sequence[bytes], seed: int) -> Run:
    """An arm with a draft; it learns where there are settings. ``values``: completions of the stream in order."""
    learner, run = Draft(DraftConfig(start=start(), **settings), 0, seed), Run()
    size = learner.config.step_completions if settings else STATIC
    for segment in stream.segments:
        for at in range(segment.start, segment.stop, size):
            _step(learner, values[at : min(at + size, segment.stop)], run, bool(settings))
        run.probes.append(_probed(learner, probes))
    return run


def _step(learner: Draft, values: Sequence[bytes], run: Run, learns: bool) -> None:
    """Count completions with the draft as it is; then learn them with these counts, as if it had served them."""
    served = []
    for value, told in zip(values, learner.servable().replayed(batch_of(values)), strict=True):
        completion = unpack(value)
        run.count(len(completion.output) - 1, len(told.steps), int(told.accepted), told.tested)
        served.append(pack(as_served(completion, told.steps)))
    batch = batch_of(served)
    began_s = time.process_time()
    if learns:
        learner.learn_many(batch)
        run.learn_s += time.process_time() - began_s


def as_served(completion: Completion, steps: Sequence[int]) -> Completion:
    """The same completion with these accepted counts of its steps."""
    return replace(completion, accepted=np.array(steps, np.uint8), drafted=np.full(len(steps), K, np.uint8))


def _probed(learner: Draft, probes: Sequence[bytes]) -> float:
    steps = [step for told in learner.servable().replayed(batch_of(probes)) for step in told.steps]
    return 1.0 + sum(steps) / max(1, len(steps))


def counted(answers: Sequence[Answer]) -> Run:
    """What another engine counted. Steps that drafted nothing it does not tell of; they gave one token each.

    The last step may have gone beyond the answer's end. What it had too much is taken for a step less, in the engine's favour.
    """
    run = Run()
    for answer in answers:
        tokens = len(answer.tokens) - 1
        told = sum(accepted + 1 for accepted in answer.accepted)
        tested = sum(a + (a < d) for d, a in zip(answer.drafted, answer.accepted, strict=True))
        run.count(tokens, len(answer.accepted) + max(0, tokens - told), sum(answer.accepted), tested)
    return run


def differing(values: Sequence[bytes], learner: Draft) -> int:
    """Completions of which a step's accepted count, as the engine served it with this draft, is not the replay's."""
    served = [tuple(hits for _, hits, _ in unpack(value).steps()) for value in values]
    replayed = (
        told.steps
        for at in range(0, len(values), STATIC)
        for told in learner.servable().replayed(batch_of(values[at : at + STATIC]))
    )
    return sum(steps != told for steps, told in zip(served, replayed, strict=True))


def figures(run: Run, stream: Stream, serve_s: float) -> dict[str, Any]:
    """What is printed of a run; ``serve_s``: processor time of a served token."""
    tokens = sum(run.tokens)
    told: dict[str, Any] = {"tokens": tokens, "alpha": round(run.alpha(), 3), "tau": round(run.tau(), 3)}
    told["segments"] = [_segment(run, part, stream.domains[part]) for part in stream.segments]
    told["learn_s"] = round(run.learn_s, 1)
    told["training_share"] = round(run.learn_s / (run.learn_s + serve_s * tokens), 3)
    return told | ({"chat_probes": [round(tau, 3) for tau in run.probes]} if run.probes else {})


def _segment(run: Run, part: slice, domains: Sequence[str]) -> dict[str, Any]:
    """tau of the first and the last of a segment; of one that stays with its domain, tokens until it is near its plateau."""
    last = slice(part.stop - max(1, int(PLATEAU * (part.stop - part.start))), part.stop)
    first, plateau = slice(part.start, min(part.start + WINDOW, part.stop)), run.tau(last)
    told = {"domain": " to ".join(dict.fromkeys(domains)), "first": round(run.tau(first), 3), "plateau": round(plateau, 3)}
    return told | {"tokens_to_95": _near(run, part, plateau) if len(set(domains)) == 1 else None}


def _near(run: Run, part: slice, plateau: float) -> int:
    """Tokens of a segment until tau over the last window is near the plateau; those before a whole window are not judged."""
    within = np.arange(part.start, part.stop)
    for stop in within[WINDOW - 1 :] + 1:
        if run.tau(slice(stop - WINDOW, stop)) >= NEAR * plateau:
            return sum(run.tokens[part.start : stop])
    return sum(run.tokens[part])


def values_of(stream: Stream, pool: Mapping[str, Sequence[Any]]) -> list[Any]:
    """What belongs to each request of a stream, of a pool by domain."""
    return [pool[domain][at] for domain, at in stream.places()]
