"""One real engine, in a process of its own, answers every prompt once at temperature 0; what it answered goes into a file.

python tests/bench/draft_engines.py draft|none|ngram prompts.json answers.msgpack

`draft` is this project's engine with the chat draft, which captures completions; the others are vLLM's `LLM` alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import psutil
from answered import K, model, pair_folder
from llm_engine import SETTINGS, Running, pair

from millrace.learners.draft.completion import pack
from millrace.services.llm.capture import ASKED, ENVIRONMENT, Asked

MOST = 40  # tokens of an answer
AT_ONCE = 16  # requests
WARM = 32  # prompts, answered before the clock runs
NGRAM = {"method": "ngram", "num_speculative_tokens": K, "prompt_lookup_min": 2, "prompt_lookup_max": 4}


class Answer(msgspec.Struct):
    """Of one prompt."""

    tokens: list[int]
    drafted: list[int] = []  # of each step that drafted something
    accepted: list[int] = []
    packed: bytes = b""  # the completion as it was captured, of this project's engine alone


class Answers(msgspec.Struct):
    """Of all prompts, in order."""

    each: list[Answer]
    processor_s: float  # of all the engine's processes, for these answers alone


@dataclass(frozen=True)
class Prompt:
    """A prompt with its domain."""

    domain: str
    text: str

    @property
    def tokens(self) -> list[int]:
        """As the target reads it."""
        return list(model("target").tokenizer(self.text)["input_ids"])


def answered_by(method: str, asked: Sequence[Prompt], folder: Path) -> Answers:
    """What an engine answers, from the file where it has answered the same before."""
    told, place = [[prompt.domain, prompt.text] for prompt in asked], folder / f"{method}.msgpack"
    asking = folder / f"{method}.json"
    if not place.exists() or json.loads(asking.read_text(encoding="utf-8")) != told:
        place.unlink(missing_ok=True)
        asking.write_text(json.dumps(told), encoding="utf-8")
        subprocess.run([sys.executable, __file__, method, asking, place], check=True, stdout=sys.stderr)
    return msgspec.msgpack.decode(place.read_bytes(), type=Answers)


def processor_s() -> float:
    """Of this process and of all that it started."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def by_llm(asked: Sequence[Prompt], speculation: dict[str, Any] | None) -> Answers:
    """Of vLLM's own `LLM`."""
    from vllm import LLM, SamplingParams

    more = {"speculative_config": speculation, "per_request_spec_decode_metrics": "detailed"} if speculation else {}
    engine = LLM(
        str(pair_folder("target")),
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_num_seqs=AT_ONCE,
        disable_log_stats=True,
        **more,
    )
    told = [{"prompt_token_ids": prompt.tokens} for prompt in asked]
    params = SamplingParams(temperature=0.0, max_tokens=MOST)
    engine.generate(told[:WARM], params, use_tqdm=False)
    engine.reset_prefix_cache()
    began_s = processor_s()
    outputs = [output.outputs[0] for output in engine.generate(told, params, use_tqdm=False)]
    taken_s = processor_s() - began_s
    return Answers([_told(output) for output in outputs], taken_s)


def _told(output: Any) -> Answer:
    counts = output.spec_decode_metrics
    steps = ([], []) if counts is None else (list(counts.per_step_drafted), list(counts.per_step_accepted))
    return Answer(list(output.token_ids), *steps)


async def _ask(running: Running, asked: Sequence[Prompt], name: str) -> None:
    """All prompts, so many at once; each completion is captured under its number."""
    from vllm import SamplingParams

    turns = asyncio.Semaphore(AT_ONCE)

    async def one(at: int, prompt: Prompt) -> None:
        async with turns:
            ASKED.set(Asked(b"bench", prompt.domain, capture=True))
            params = SamplingParams(temperature=0.0, max_tokens=MOST)
            tokens = {"type": "token", "prompt_token_ids": prompt.tokens}
            async for _ in running.engine.client.generate(tokens, params, f"{name}{at}"):
                pass

    await asyncio.gather(*(asyncio.create_task(one(at, prompt)) for at, prompt in enumerate(asked)))


def by_ours(asked: Sequence[Prompt]) -> Answers:
    """Of this project's engine with the chat draft, which captures."""
    with TemporaryDirectory() as home:
        running = Running(Path(home))
        running.start(pair(kv_policy="lazy"))
        try:
            running.do(_ask(running, asked[:WARM], "warm"))
            running.do(running.engine.client.reset_prefix_cache())
            running.captured()
            began_s = processor_s()
            running.do(_ask(running, asked, ""))
            taken_s = processor_s() - began_s
        finally:
            running.close()
    seen = sorted(((int(each.header.id), each) for each, _ in running.captured()), key=lambda pair: pair[0])
    assert [at for at, _ in seen] == list(range(len(asked))), len(seen)
    told = [(each.output.tolist(), each.drafted.tolist(), each.accepted.tolist(), pack(each)) for _, each in seen]
    return Answers([Answer(*each) for each in told], taken_s)


def main() -> None:
    """Answer, and write the answers."""
    method, asking, place = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    os.environ.update(ENVIRONMENT | SETTINGS)
    asked = [Prompt(*each) for each in json.loads(asking.read_text(encoding="utf-8"))]
    answers = by_ours(asked) if method == "draft" else by_llm(asked, NGRAM if method == "ngram" else None)
    place.write_bytes(msgspec.msgpack.encode(answers))


if __name__ == "__main__":
    main()
