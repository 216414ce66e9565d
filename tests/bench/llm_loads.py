"""A real engine under load: what capture takes of its tokens, and how long a swap holds decoding up.

Both sides of a pair are asked the same prompts, one side after the other, first the one and then the other first. Rates are by
the processor's time of all the engine's processes, and by the wall beside it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from draft_engines import AT_ONCE, MOST, processor_s
from draft_streams import DOMAINS, prompts
from llm_engine import ALLOWED, SETTINGS, Running, begun_draft, pair, written
from results import Pairs, compared

from millrace.learners.draft.completion import Completion
from millrace.services.llm.capture import ENVIRONMENT, Asked
from millrace.services.llm.swapping import DraftFile
from millrace.streams.schema import Llm

OFF = replace(ALLOWED, capture=False)
ASKED = 48  # completions of one side of a pair


class WithBare(Running):
    """An engine whose worker can load a file without a look at it, too."""

    def start(self, llm: Llm) -> None:
        """Start it with the chat draft."""
        os.environ.update(
            ENVIRONMENT | SETTINGS | {"VLLM_LOGGING_STREAM": "ext://sys.stderr"}
        )  # what is printed are lines of ours
        from millrace.services.llm.engine import Engine

        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        first = written(begun_draft(), self.folder / "main.1", 1)
        self.engine = self.do(Engine.start(llm, "millrace-test", first, self.take, "bare_worker.BareWorker"))

    def take(self, completion: Completion, tenant: bytes) -> None:
        """What is captured."""
        self.seen.append((completion, tenant))


def served(parts: Sequence[str], quick: bool) -> Iterator[dict[str, object]]:
    """The lines of an engine."""
    with TemporaryDirectory() as home:
        running = WithBare(Path(home))
        running.start(pair())
        try:
            if "capture" in parts:
                yield from capture(running, 5 if quick else 15)
            if "swap" in parts:
                yield from swaps(running, 8 if quick else 24)
        finally:
            running.close()


def capture(running: Running, count: int) -> Iterator[dict[str, object]]:
    """Tokens of answers with capture and without, in turns."""
    texts = [text for domain in DOMAINS for text in prompts(domain, ASKED // len(DOMAINS))]
    rated(running, texts, OFF)
    by_processor, by_wall = [], []
    for at in range(count):
        sides = (ALLOWED, OFF) if at % 2 else (OFF, ALLOWED)
        rates = dict(zip((side.capture for side in sides), (rated(running, texts, side) for side in sides), strict=True))
        by_processor.append((rates[True][0], rates[False][0]))
        by_wall.append((rates[True][1], rates[False][1]))
    for how, pairs in (("of processor time", by_processor), ("by the wall", by_wall)):
        yield compared("llm", f"answers with capture, {how}", "answer tokens/s", pairs, ("without capture", 0.9))


def rated(running: Running, texts: Sequence[str], asked: Asked) -> tuple[float, float]:
    """Tokens a second of the processor's time, and of the wall, with nothing cached."""
    running.do(running.engine.client.reset_prefix_cache())
    running.captured()
    bodies = [{"prompt": text, "max_tokens": MOST, "temperature": 0, "ignore_eos": True} for text in texts]
    began_s, began_wall_s = processor_s(), time.perf_counter()
    replies = running.ask(bodies, asked=asked)
    taken_s, taken_wall_s = processor_s() - began_s, time.perf_counter() - began_wall_s
    tokens = sum(reply.json()["usage"]["completion_tokens"] for reply in replies)
    assert len(running.captured()) == (len(texts) if asked.capture else 0)
    return tokens / taken_s, tokens / taken_wall_s


def swaps(running: Running, count: int) -> Iterator[dict[str, object]]:
    """How long steps wait for a swap, beside the same file read and loaded bare: idle, and under load."""
    files = [written(begun_draft(), running.folder / f"main.{seq}", seq) for seq in range(2, 4)]
    bare, by_vllm = read_and_loaded(files[0]), ("the same file read and loaded bare by vLLM", 1 / 3)
    idle = running.do(swapped(running, files, count))
    yield compared("llm", "a swap, idle", "ms", idle, by_vllm)
    against = [(ours, bare) for ours, _ in idle]
    yield compared(
        "llm", "a swap, idle, beside transformers", "ms", against, ("read, and load_state_dict of transformers", 1 / 3)
    )
    busy = running.do(loaded(running, files, count))
    yield compared("llm", f"a swap, {AT_ONCE} requests under way", "ms", busy, by_vllm)


async def swapped(running: Running, files: Sequence[DraftFile], count: int) -> Pairs:
    """Milliseconds of a swap and of a bare load, in turns."""
    found = []
    for at in range(count):
        bare = ours = 0.0
        for side in (0, 1) if at % 2 else (1, 0):
            if side:
                ours = await running.engine.swap(files[at % 2], newer=False)
            else:
                began_s = time.perf_counter()
                await running.engine.client.collective_rpc("read_and_load", args=(str(files[at % 2].folder),))
                bare = time.perf_counter() - began_s
        found.append((1e3 * ours, 1e3 * bare))
    return found


async def loaded(running: Running, files: Sequence[DraftFile], count: int) -> Pairs:
    """The same while requests are answered, again and again."""
    body = {"prompt": prompts("chat", 1)[0], "max_tokens": 400, "temperature": 0, "ignore_eos": True}

    async def going() -> None:
        while True:
            await running.post("/v1/completions", body, OFF)

    tasks = [asyncio.create_task(going()) for _ in range(AT_ONCE)]
    try:
        return await swapped(running, files, count)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def read_and_loaded(file: DraftFile, times: int = 5) -> float:
    """Milliseconds of transformers' way: the least of some."""
    from safetensors.torch import load
    from transformers import AutoModelForCausalLM

    model, least = AutoModelForCausalLM.from_pretrained(file.folder, dtype=torch.float32), float("inf")
    for _ in range(times):
        began_s = time.perf_counter()
        model.load_state_dict(load((file.folder / "model.safetensors").read_bytes()), strict=False)
        least = min(least, time.perf_counter() - began_s)
    return 1e3 * least
