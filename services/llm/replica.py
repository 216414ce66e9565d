"""A replica that answers as a language model: vLLM's engine in its process, with the draft that the ledger says.

Serve places, watches and restarts it as it does a predictor; seats, front, trainer and draining are the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.learners.errors import MillraceError
from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.grpc import Calls, GrpcApp
from millrace.services.endpoint.http import Receive, Scope, Send
from millrace.services.endpoint.servers import Servers
from millrace.services.llm.app import LlmApp
from millrace.services.llm.follower import DraftFollower
from millrace.services.llm.recorded import CompletionLog
from millrace.services.serving.actors import Subscriber, current_name
from millrace.services.serving.ending import RECORD_S, WORK_S
from millrace.services.serving.event_socket import send_events
from millrace.services.serving.replica import Serving, announce, overview, place_of, replica_name
from millrace.services.serving.seats import is_draining
from millrace.services.training.current import Presence

if TYPE_CHECKING:
    from millrace.services.llm.engine import Engine

log = logging.getLogger("millrace")

DRAFTS = "drafts"  # the folder beside the replicas' sockets where drafts lie while engines have them


def own_drafts(place: Path) -> Path:
    """The folder of this process's drafts; those of processes that were killed go."""
    for path in place.glob("*"):
        if not Path("/proc", path.name).exists():
            shutil.rmtree(path, ignore_errors=True)
    return place / str(os.getpid())


class LanguageModel(Calls):
    """One replica. Requests come to its own servers, which open once the engine has the draft that is to be served."""

    def __init__(self, serving: Serving, _keeper: Any) -> None:
        send_events(serving.folder, "replica", serving.branch)
        self._serving, self._name = serving, replica_name()
        pipeline = serving.instance.loaded.pipeline
        self._subscriber = Subscriber(current_name(serving.instance))
        self._follower = DraftFollower(serving.instance, own_drafts(serving.folder / DRAFTS))
        self._completions = CompletionLog(serving.instance)
        self._endpoint = Endpoint(
            pipeline.name,
            pipeline.schema,
            lambda: self._follower.held,
            serving.access,
            pipeline.serving,
            overview=lambda: overview(serving, self._subscriber, self._presence()),
            draining=lambda: is_draining(serving.folder),
        )
        self.grpc_app = GrpcApp(self._endpoint)
        self._engine: Engine | None = None
        self._servers: Servers | None = None
        loop = asyncio.get_running_loop()  # Serve makes us on its loop
        self._starting = loop.create_task(self._start())
        self._following: asyncio.Task[None] | None = None
        self._telling = loop.create_task(announce(self._subscriber, self._presence))

    def __serve_build_asgi_app__(self) -> LlmApp:
        """What Serve's proxies call for every HTTP request; Serve asks for this after ``__init__``."""
        return LlmApp(self._endpoint, self._ask_engine)

    async def _start(self) -> None:
        """Raises: MillraceError where the draft cannot be read, or the engine does not take it."""
        from millrace.services.llm.engine import Engine

        llm, began_s = self._serving.instance.loaded.pipeline.llm, time.monotonic()
        assert llm is not None
        draft = await self._follower.first()
        log.info("vLLM starts with draft %s.", draft.identity.name)
        self._engine = await Engine.start(llm, self._endpoint.name, draft, self._completions.take)
        self._follower.begun(draft)
        await self._follower.catch_up(self._engine)
        self._following = asyncio.get_running_loop().create_task(self._follower.run(self._engine))
        log.info("vLLM has started, after %.0f s.", time.monotonic() - began_s)

    async def _ask_engine(self, scope: Scope, receive: Receive, send: Send) -> None:
        """vLLM's own application. Raises: MillraceError where the engine is dead: vLLM would only say that it failed."""
        assert self._engine is not None  # there are no servers before
        self._engine.check()
        await self._engine.app(scope, receive, send)

    async def check_health(self) -> None:
        """The first look waits for the engine; only then does the replica listen.

        Raises: MillraceError where it does not start, has ended, or nobody can reach the replica. Serve then makes another one.
        """
        await asyncio.shield(self._starting)
        assert self._engine is not None
        assert self._following is not None
        self._engine.check()
        if self._following.done():
            raise MillraceError(f"This replica no longer follows the ledger: {self._following.exception()!r}.")
        if self._servers is not None:
            self._servers.check()
        elif not self._serving.proxies:
            place = place_of(self._serving)
            self._servers = Servers(self._endpoint, place, WORK_S, self._app)
            await self._servers.open()
            log.info("It takes requests in.")

    def _app(self, endpoint: Endpoint, behind_front: bool) -> LlmApp:
        return LlmApp(endpoint, self._ask_engine, behind_front)

    async def __del__(self) -> None:
        """Serve calls this before it ends a replica: nobody new comes in, what is at work is answered and recorded."""
        if self._servers is not None:
            await self._servers.close()
        for task in (self._starting, self._following):
            if task is not None:
                task.cancel()
        recorded = asyncio.to_thread(self._completions.recorder.close, RECORD_S)
        await asyncio.gather(recorded, *([self._engine.close()] if self._engine is not None else []))

    def _presence(self) -> Presence:
        follower, counts = self._follower, self._completions.recorder.counts
        held = follower.held
        return Presence(
            replica=self._name,
            pid=os.getpid(),
            serves=follower.described_target,
            answers="" if held is None else held.identity.name,
            staleness_ms=None,
            stored=counts.stored,
            waiting=counts.waiting,
            dropped=counts.dropped,
            requests=tuple((*call, count) for call, count in self._endpoint.traffic.requests.items()),
            completions=self._counted(),
            swaps=(("done", follower.swapped), ("refused", follower.refused)),
            said=follower.said,
            series="" if self._engine is None else self._engine.series(),
        )

    def _counted(self) -> tuple[tuple[str, int], ...]:
        """What became of completions."""
        if self._engine is None:
            return ()
        counts = self._engine.counts
        dropped = dict(counts.dropped) | {"too_large": self._completions.too_large}
        return (("captured", counts.captured), *sorted(dropped.items()))
