"""A real engine of vLLM on the pair of models of ``llm/domains5M``, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from answered import TOP, K, batch_of, pair_folder

from millrace.learners.draft.completion import Completion, pack, unpack
from millrace.learners.draft.config import DraftConfig, Start
from millrace.learners.draft.folder import fingerprint
from millrace.learners.draft.learner import Draft
from millrace.learners.draft.simulator import Replayed
from millrace.services.llm.capture import ASKED, ENVIRONMENT, Asked
from millrace.services.llm.swapping import DraftFile
from millrace.services.pipeline.bundle import Identity
from millrace.streams.schema import Llm

ALLOWED = Asked(b"tenant", "chat", capture=True)
# One core: threads of OpenMP spin at barriers, and two of them on a shared machine are slower than one.
SETTINGS = {"VLLM_CPU_OMP_THREADS_BIND": str(max(os.sched_getaffinity(0))), "VLLM_CPU_KVCACHE_SPACE": "1"}
EAGER = ("--dtype", "float32", "--enforce-eager", "--block-size", "32")
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


def begun_draft(folder: Path | None = None) -> Draft:
    """The draft of a folder, else the chat draft, for the target's completions."""
    folder = folder or pair_folder("draft_chat")
    return Draft(DraftConfig(start=Start(str(folder), fingerprint(folder), fingerprint(pair_folder("target")), K, TOP)), 0, 0)


def written(draft: Draft, folder: Path, seq: int) -> DraftFile:
    """A draft on disk, as version ``main.SEQ``."""
    draft.servable().write(folder)
    return named(folder, seq)


def named(folder: Path, seq: int) -> DraftFile:
    """What lies in a folder, as version ``main.SEQ``."""
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return DraftFile(folder, digest, Identity("main", 1, seq, f"main.{seq}"))


def pair(capture: Any = "all", **keys: Any) -> Llm:
    """The table [llm] of the pair."""
    target, draft = pair_folder("target"), pair_folder("draft_chat")
    said = Llm(
        str(target), str(draft), capture, K, TOP, 1, fingerprint(target), fingerprint(draft), 4096, options=EAGER + TOOLS
    )
    return replace(said, **keys)


@dataclass
class Running:
    """An engine, and what it captured."""

    folder: Path
    seen: list[tuple[Completion, bytes]] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    engine: Any = None

    def start(self, llm: Llm) -> None:
        """Start it with the chat draft, and with a worker that can be told to fail."""
        os.environ.update(ENVIRONMENT | SETTINGS)
        from millrace.services.llm.engine import Engine

        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        first = written(begun_draft(), self.folder / "main.1", 1)
        self.engine = self.do(Engine.start(llm, "millrace-test", first, self._take, "faulty_worker.FaultyWorker"))

    def _take(self, completion: Completion, tenant: bytes) -> None:
        self.seen.append((unpack(pack(completion)), tenant))  # as the log has it, and refused where it would be

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        """End the engine and its loop."""
        self.do(self.engine.close())
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def post(self, path: str, body: dict[str, Any], asked: Asked = ALLOWED) -> Any:
        """The response to one request of the OpenAI API, by this caller."""
        import httpx  # which comes with vLLM

        ASKED.set(asked)
        transport = httpx.ASGITransport(self.engine.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=None) as client:
            content = json.dumps({"model": "millrace-test", **body})  # in ASCII: half a character is one that others can send
            return await client.post(path, content=content, headers={"content-type": "application/json"})

    def ask(self, bodies: Sequence[dict[str, Any]], path: str = "/v1/completions", asked: Asked = ALLOWED) -> list[Any]:
        """Many requests at once, in order."""

        async def all_of_them() -> list[Any]:
            tasks = [asyncio.create_task(self.post(path, body, asked)) for body in bodies]
            return await asyncio.gather(*tasks)

        return self.do(all_of_them())

    def captured(self) -> list[tuple[Completion, bytes]]:
        """What was captured since this was asked last."""
        self.seen, seen = [], self.seen
        return seen


def replayed(seen: Sequence[Completion], draft: Draft) -> list[Replayed]:
    """What a draft would have counted of completions, by a simulator that never saw the engine."""
    return draft.servable().replayed(batch_of([pack(completion) for completion in seen]))


def events(text: str) -> list[dict[str, Any]]:
    """The data of a stream."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
