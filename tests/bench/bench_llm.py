"""What distilling and serving cost beside the bare thing: learning, replaying, memory; capture and swaps of a real engine.

Each pair is measured one side after the other, learning and replaying by the processor's time. Completions are those that
`make bench-draft` stored, so that no engine runs for the first three.

python tests/bench/bench_llm.py [learning replaying memory capture swap] [--quick] [--out build/bench-draft]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from answered import answered, batch_of, pair_folder
from draft_arms import STATIC, start
from draft_engines import Answers
from results import compared, machine, say
from transformers import AutoModelForCausalLM

from millrace.learners.draft.buffer import Kept, Reservoir, Ring
from millrace.learners.draft.completion import pack, unpack
from millrace.learners.draft.config import DraftConfig
from millrace.learners.draft.learner import Draft, counted
from millrace.learners.draft.rows import Block, block_of, cut
from millrace.streams.branch.host import use_threads

GROUP = 16  # completions of a step that is taken first, for what libraries allocate once
KEPT = {"ring_tokens": 32_768, "reservoir_tokens": 8_192, "longest_share": 0.125}  # full long before the first measurement
MIB = 1 << 20


def completions(folder: Path) -> list[bytes]:
    """Packed, of four domains: those that bench-draft stored, else a few that transformers answers."""
    if stored := sorted(folder.glob("*/draft.msgpack"), key=lambda place: place.stat().st_size):
        found = [answer.packed for answer in msgspec.msgpack.decode(stored[-1].read_bytes(), type=Answers).each]
        np.random.default_rng(0).shuffle(found)  # type: ignore[arg-type]
        return found
    return [value for pair in zip(answered("chat", 96), answered("sql", 96), strict=True) for value in pair]


def timed(call: Callable[..., object], *arguments: object) -> float:
    """Seconds of the processor's time that a call takes."""
    began_s = time.process_time()
    call(*arguments)
    return time.process_time() - began_s


class Remembering:
    """Mixed into what is drawn from: it remembers what was drawn."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.drawn: list[list[Kept]] = []

    def draw(self, count: int, draws: np.random.Generator) -> list[Kept]:
        """As without it."""
        self.drawn.append(super().draw(count, draws))
        return self.drawn[-1]


class Drawing(Remembering, Ring):
    """A ring that remembers."""


class DrawingReservoir(Remembering, Reservoir):
    """A reservoir that remembers."""


class Bare:
    """A loop of torch: AdamW on KL of the captured tokens and the rest. Its batches come as tensors that are ready."""

    def __init__(self, config: DraftConfig, tuned: bool) -> None:
        self.config, self.tuned = config, tuned
        self.model = AutoModelForCausalLM.from_pretrained(pair_folder("draft_chat"), dtype=torch.float32).eval()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=config.rate, weight_decay=0.0)

    def ready(self, values: Sequence[bytes]) -> tuple[Block, torch.Tensor]:
        """Tensors of a batch, and weights of its positions."""
        group = [unpack(value) for value in values]
        return block_of(group), torch.from_numpy(np.concatenate([counted(each, self.config) for each in group]))

    def logits(self, block: Block) -> torch.Tensor:
        """(N, V). Tuned: of the answers' positions alone."""
        if not self.tuned:
            told: torch.Tensor = self.model(block.tokens, use_cache=False).logits[block.row, block.place]
            return told
        states = self.model.model(block.tokens, use_cache=False).last_hidden_state
        answered_by: torch.Tensor = self.model.lm_head(states[block.row, block.place])
        return answered_by

    def step(self, block: Block, weights: torch.Tensor) -> None:
        """One step, as the learner's own."""
        log_q = torch.log_softmax(self.logits(block), dim=1).gather(1, block.ids)
        rest = (1.0 - log_q.exp().sum(dim=1, keepdim=True)).clamp(min=1e-7)
        p = block.log_p.exp()
        p = torch.cat([p, (1.0 - p.sum(dim=1, keepdim=True)).clamp(min=0.0)], dim=1)
        p = p / p.sum(dim=1, keepdim=True)
        losses = (torch.xlogy(p, p) - p * torch.cat([log_q, rest.log()], dim=1)).sum(dim=1)
        self.optimiser.zero_grad()
        ((losses * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimiser.step()


def learning(values: Sequence[bytes], quick: bool, tuned: bool) -> dict[str, object]:
    """The learner with its own settings, against the bare loop on the very batches that it drew."""
    config = DraftConfig(start=start(), rate=2e-3)
    learner, bare, pairs, size = Draft(config, 0, 0), Bare(config, tuned), [], 2 * config.step_completions
    ring, reservoir = Drawing(config.ring_tokens), DrawingReservoir(config.reservoir_tokens)
    learner.ring, learner.reservoir = ring, reservoir
    for at in range(0, size * (12 if quick else 60), size):
        new, first = values[at : at + size], len(ring.drawn)
        taken_s = timed(learner.learn_many, batch_of(new))
        drawn = [[item.value for item in [*a, *b]] for a, b in zip(ring.drawn[first:], reservoir.drawn[first:], strict=True)]
        groups = [[*new[: size // 2], *each] for each in drawn[:2]] + [[*new[size // 2 :], *each] for each in drawn[2:]]
        batches = [bare.ready(group) for group in groups]
        bare_s = sum(timed(bare.step, *batch) for batch in batches)
        tokens = sum(int(block.ids.shape[0]) for block, _ in batches)
        pairs.append((tokens / taken_s, tokens / bare_s))
    how = "bare torch loop, head at the answers alone" if tuned else "bare torch loop on the same batches"
    return compared("llm", "learning", "answer tokens/s", pairs[2:], (how, 0.8))


def replaying(values: Sequence[bytes], quick: bool, tuned: bool) -> dict[str, object]:
    """What the simulator takes for blocks of 64 completions, against forward passes over the same blocks and an argmax."""
    draft, bare, pairs = Draft(DraftConfig(start=start()), 0, 0).servable(), Bare(DraftConfig(), tuned), []
    for at in range(0, len(values) - STATIC, STATIC):
        group = values[at : at + STATIC]
        told = [unpack(value) for value in group]
        blocks = [block_of(told[a:b]) for a, b in cut(told, 4096)]
        batch, tokens = batch_of(group), sum(len(each.output) for each in told)
        taken_s = timed(draft.predict_many, batch)
        with torch.no_grad():
            bare_s = sum(timed(lambda block: bare.logits(block).argmax(dim=1), block) for block in blocks)
        pairs.append((tokens / taken_s, tokens / bare_s))
        if len(pairs) > (8 if quick else 40):
            break
    how = "bare forward passes, head at the answers alone" if tuned else "bare forward passes on the same blocks"
    return compared("llm", "replaying", "answer tokens/s", pairs[1:], (how, 0.8))


def resident() -> tuple[float, float]:
    """Bytes of this process that are in memory now, without what the allocator holds back, and the most that ever were."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(said["VmRSS"].split()[0]) * 1024.0, int(said["VmHWM"].split()[0]) * 1024.0


def trained(values: Sequence[bytes], count: int) -> None:
    """Learn so many completions, and print what memory it took beyond the libraries' own. In a process of its own."""
    warm = Bare(DraftConfig(), tuned=True)
    warm.step(*warm.ready(values[:GROUP]))  # what the libraries allocate once
    del warm
    before, _ = resident()
    learner = Draft(DraftConfig(start=start(), step_completions=32, updates=1, draws=8, **KEPT), 0, 0)
    marks, sizes = {count // 5, count}, {}
    for at in range(0, count, 32):
        group = [unpack(values[each % len(values)]) for each in range(at, at + 32)]
        learner.learn_many(batch_of([pack(short(each, at + offset)) for offset, each in enumerate(group)]))
        if marks and learner.rows >= min(marks):
            sizes[learner.rows] = resident()[0] - before
            marks.remove(min(marks))
    weights = sum(weight.numel() * 4 for weight in learner.weights.values())
    stated = (KEPT["ring_tokens"] + KEPT["reservoir_tokens"]) * 1.4 * (4 + 6 * learner.config.start.top)
    held = sum(value.nbytes for value in learner.state_dict().truth.values() if isinstance(value, np.ndarray))
    kept = sum(item.tokens for item in [*learner.ring.items, *learner.reservoir.items])
    told = {"sizes": sizes, "peak": resident()[1] - before, "weights": weights, "stated": stated, "state": held}
    say(told | {"kept_tokens": kept})


def short(completion: Any, number: int) -> Any:
    """The completion's first twelve tokens, under a number of its own: what takes time is not what takes memory here."""
    most = min(12, len(completion.output))
    rows = {name: getattr(completion, name)[:most] for name in ("output", "ids", "log_probabilities")}
    steps, at = 0, 1
    while at < most:
        at += int(completion.accepted[steps]) + 1
        steps += 1
    counts = {name: getattr(completion, name)[:steps] for name in ("drafted", "accepted")}
    return replace(completion, header=replace(completion.header, id=str(number)), **rows, **counts)


def memory(folder: Path, quick: bool) -> Iterator[dict[str, object]]:
    """What a trainer holds, between steps and at most, against the limit; and how much more at the end than after a fifth."""
    count = 1_600 if quick else 10_016
    command = [sys.executable, __file__, "--trained", str(count), "--out", str(folder)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    limit, (early, late) = 4.0 * told["weights"] + told["stated"], told["sizes"].values()
    name = "4 x draft in float32 + stated bytes of the buffer"
    for case, size in (
        ("state and buffer as they are stored", told["state"]),
        ("beyond libraries, between steps", late),
        ("beyond libraries, at most", told["peak"]),
    ):
        yield compared("llm", f"trainer's memory: {case}", "MiB", [(size / MIB, limit / MIB)], (name, 1.0))
    flat = (f"after {count // 5} completions", 1.0)
    yield compared("llm", f"trainer's memory after {count} completions", "MiB", [(late / MIB, early / MIB)], flat)


def main() -> None:
    """Print one JSON line a comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["learning", "replaying", "memory", "capture", "swap"])
    parser.add_argument("--quick", action="store_true", help="fewer pairs and completions")
    parser.add_argument("--out", type=Path, default=Path("build/bench-draft"), help="where bench-draft stored completions")
    parser.add_argument("--trained", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    use_threads(1)
    torch.set_num_threads(1)
    if arguments.trained:
        trained(completions(arguments.out), arguments.trained)
        return
    say(machine("llm") | {"quick": arguments.quick})
    values = completions(arguments.out)
    for part, measured in (("learning", learning), ("replaying", replaying)):
        for tuned in (False, True) if part in arguments.parts else ():
            say(measured(values, arguments.quick, tuned))
    if "memory" in arguments.parts:
        for line in memory(arguments.out, arguments.quick):
            say(line)
    if {"capture", "swap"} & set(arguments.parts):
        from llm_loads import served

        for line in served(arguments.parts, arguments.quick):
            say(line)


if __name__ == "__main__":
    main()
