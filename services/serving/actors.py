"""The named Ray actors of a pipeline, ``NewestWeights`` and whoever learns: how they are made, found again and spoken to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from millrace.services.pipeline.instance import Instance
from millrace.services.serving.event_socket import send_events
from millrace.services.serving.follower import Fetched
from millrace.services.training import current, merger, trainer
from millrace.services.training.current import Blob, News, Presence, Publication
from millrace.services.training.trainer import Publish, TrainerStatus

log = logging.getLogger("millrace")

NAMESPACE = "millrace"
TIMEOUT_S = 5.0  # for another process to answer
STATUS_TIMEOUT_S = 5.0  # the same, for whoever looks at the status
TRAINER_CPUS = 0.2  # logical ones, for placement; how many threads it uses is the pipeline's `threads`

# How an actor stays: named, detached, started again whenever it dies.
LASTING: dict[str, Any] = {"namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1, "get_if_exists": True}


class NewestWeights(current.NewestWeights):
    """One whose events `up` prints; ``folder``: where it receives them."""

    def __init__(self, folder: Path, put_blob: Callable[[Blob], Any]) -> None:
        send_events(folder, "current", "")
        super().__init__(put_blob)


class Trainer(trainer.Trainer):
    """The same."""

    def __init__(self, folder: Path, instance: Instance, branch: str, publish: Publish) -> None:
        send_events(folder, "trainer", branch)
        super().__init__(instance, branch, publish)


class Merger(merger.Merger):
    """The same."""

    def __init__(self, folder: Path, instance: Instance, branch: str, publish: Publish) -> None:
        send_events(folder, "merger", branch)
        super().__init__(instance, branch, publish)


def current_name(instance: Instance) -> str:
    """The actor's name."""
    return f"current-{instance.loaded.pipeline.name}"


def trainer_name(instance: Instance, branch: str) -> str:
    """The actor's name."""
    return f"trainer-{instance.loaded.pipeline.name}-{branch}"


def make_current(instance: Instance, folder: Path) -> Any:
    """The actor that holds the newest weights, made now unless it is there. ``folder``: where `up` receives events."""
    options = LASTING | {"name": current_name(instance), "num_cpus": 0}
    return ray.remote(NewestWeights).options(**options).remote(folder, ray.put)


def make_trainers(instance: Instance, branch: str, folder: Path) -> list[tuple[str, Any]]:
    """Who learns for a branch, by the branches they write, made now unless they are there; in the order in which they stop.

    That is its trainer; or the trainers of its shards, and last the merger. Their calls do not wait for each other.
    """
    shards = instance.shards(branch)
    if shards == [branch]:
        return [(branch, _made(Trainer, (folder, instance, branch), current_name(instance)))]
    trainers = [(shard, _made(Trainer, (folder, instance, shard), trainer_name(instance, branch))) for shard in shards]
    return [*trainers, (branch, _made(Merger, (folder, instance, branch), current_name(instance)))]


def _made(kind: type[Trainer | Merger], which: tuple[Path, Instance, str], publishes_to: str) -> Any:
    _, instance, branch = which
    options = LASTING | {"name": trainer_name(instance, branch), "num_cpus": TRAINER_CPUS, "max_concurrency": 4}
    return ray.remote(kind).options(**options).remote(*which, Publisher(publishes_to))


async def trainer_state(instance: Instance, branch: str) -> TrainerStatus | None:
    """Where a branch's trainer is, or None where it does not answer."""
    try:
        actor = await asyncio.to_thread(ray.get_actor, trainer_name(instance, branch), NAMESPACE)
        async with asyncio.timeout(STATUS_TIMEOUT_S):
            state: TrainerStatus = await actor.state.remote()
    except (RayError, TimeoutError, ValueError):
        return None
    return state


class Publisher:
    """How the trainer reaches ``NewestWeights``: what cannot be reached now hears of the next state."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._actor: Any = None

    def __call__(self, publication: Publication, blob: Blob | None) -> bool:
        """Publish, or beat without a blob; False where the state is not held there."""
        try:
            self._actor = self._actor or ray.get_actor(self._name, NAMESPACE)
            reply = self._actor.beat.remote(publication) if blob is None else self._actor.publish.remote(publication, blob)
            return bool(ray.get(reply, timeout=TIMEOUT_S))
        except (RayError, GetTimeoutError, ValueError) as error:  # ValueError: there is no actor of that name
            log.warning("Current does not answer (%s); the next beat tries again.", type(error).__name__)
            self._actor = None
            return False


class Subscriber:
    """How a replica waits for news from ``NewestWeights``; without ``NewestWeights`` there are none."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._actor: Any = None

    async def __call__(self, branch: str, after: Publication | None, timeout_s: float) -> Fetched | None:
        """What is newer, with its bytes; None where that cannot be had in time."""
        try:
            self._actor = self._actor or await asyncio.to_thread(ray.get_actor, self._name, NAMESPACE)
            async with asyncio.timeout(timeout_s + TIMEOUT_S):
                news: News | None = await self._actor.next.remote(branch, after, timeout_s)
                if news is None:
                    return None
                if after is not None and news.publication.sha256 == after.sha256:
                    return news.publication, b""
                return news.publication, bytes(await news.blob)
        except (RayError, TimeoutError, ValueError) as error:
            log.warning("Current does not answer (%s); what was served goes on.", type(error).__name__)
            self._actor = None
            await asyncio.sleep(min(timeout_s, 0.5))
            return None

    async def tell(self, presence: Presence) -> None:
        """Say what this replica does; without ``NewestWeights`` nobody hears it."""
        await self._call("hear", presence)

    async def replicas(self) -> list[Presence]:
        """What all of them said lately; without ``NewestWeights`` nothing is known."""
        return await self._call("replicas") or []

    async def _call(self, method: str, *arguments: Presence) -> Any:
        try:
            self._actor = self._actor or await asyncio.to_thread(ray.get_actor, self._name, NAMESPACE)
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                return await getattr(self._actor, method).remote(*arguments)
        except (RayError, TimeoutError, ValueError):
            return None
