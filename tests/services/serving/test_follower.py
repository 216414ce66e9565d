"""What a replica answers from: the ledger decides, the newest weights arrive, and nothing damaged or older is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
from pipelines import PIPELINE, TIMEOUT_S, here, millrace, pipeline_in

from millrace.services.config.config import load_pipeline
from millrace.services.decisions.decide import decide, plan
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import Bundle, Identity, Parts, bundle_bytes
from millrace.services.pipeline.instance import Instance
from millrace.services.serving.follower import Fetched, Follower
from millrace.services.training.current import Blob, NewestWeights, Publication
from millrace.streams.journal.ledger import Target
from millrace.streams.parts import sha256, unpack

SOON_S = float(TIMEOUT_S)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Instance:
    """A pipeline with two versions, main.A and main.B; its endpoint follows main."""
    folder = tmp_path_factory.mktemp("learned")
    pipeline_in(folder, text=PIPELINE)
    for _ in range(2):
        assert here("send", "digits.toml", "rows.jsonl", cwd=folder).exit_code == 0
        assert millrace("run", "digits.toml", cwd=folder).returncode == 0
    return Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")


def state(instance: Instance, epoch: int, seq: int) -> tuple[Publication, Blob]:
    """The newest version's weights, published under another place."""
    newest = Archive(instance).newest("main")
    schema = instance.loaded.pipeline.schema
    serve = newest._servable.arrays()
    parts = Parts(Identity("main", epoch, seq), 1, "ridge", newest._features.state(), serve)
    blob = bundle_bytes(parts, schema)
    return Publication(parts.identity, sha256(blob), 1), np.frombuffer(blob, np.uint8)


def following(current: NewestWeights) -> Callable[..., Awaitable[Fetched | None]]:
    """Asks ``NewestWeights`` as a replica does, in one process."""

    async def ask(branch: str, after: Publication | None, timeout_s: float) -> Fetched | None:
        news = await current.next(branch, after, max(timeout_s, 0.01))
        return None if news is None else (news.publication, bytes(news.blob))

    return ask


def play(instance: Instance, story: Callable[[Follower, NewestWeights], Awaitable[None]]) -> None:
    """Run a follower beside a story about it."""

    async def both() -> None:
        current = NewestWeights(lambda blob: blob)
        follower = Follower(instance, following(current))
        task = asyncio.create_task(follower.run())
        try:
            await story(follower, current)
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(both())


async def warned(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Once a replica has said so."""
    async with asyncio.timeout(SOON_S):
        while words not in caplog.text:
            await asyncio.sleep(0.01)


async def soon(follower: Follower, true: Callable[[Bundle], bool]) -> Bundle:
    """The bundle, once it is as it should be."""
    async with asyncio.timeout(SOON_S):
        while follower.held is None or not true(follower.held):
            await asyncio.sleep(0.01)
    return follower.held


def versions(instance: Instance) -> list[str]:
    """Oldest first."""
    return [mark.version for mark in Archive(instance).marks("main") if mark.version]


@pytest.mark.slow
def test_a_replica_without_current_answers_from_the_newest_checkpoint_and_takes_what_comes(learned: Instance, caplog) -> None:
    """The newest wins; what is older, or damaged on its way, is never used."""

    async def story(follower: Follower, current: NewestWeights) -> None:
        assert (await soon(follower, lambda held: True)).identity.version == versions(learned)[-1]
        assert await current.publish(*state(learned, 9, 50))
        await soon(follower, lambda held: held.identity.place == (9, 50))
        assert not await current.publish(*state(learned, 8, 99))
        publication, blob = state(learned, 9, 60)
        await current.publish(publication, np.append(blob[:-1], blob[-1] ^ 1).astype(np.uint8))
        await warned(caplog, "It is not used; what was served before goes on.")
        assert follower.held.identity.place == (9, 50)
        await current.publish(*state(learned, 9, 70))
        before = await soon(follower, lambda held: held.identity.place == (9, 70))
        assert await current.beat(replace(state(learned, 9, 70)[0], as_of_ms=12345))
        after = await soon(follower, lambda held: held.as_of_ms == 12345)
        assert after.sha256 == before.sha256 and before.as_of_ms == 1

    play(learned, story)


@pytest.mark.slow
def test_a_decision_is_followed_at_once_and_an_impossible_one_changes_nothing(learned: Instance, caplog) -> None:
    """To an older version, on to one that is not there, and back to the branch's newest."""
    first = versions(learned)[0]

    async def story(follower: Follower, current: NewestWeights) -> None:
        await current.publish(*state(learned, 9, 50))
        await soon(follower, lambda held: held.identity.place == (9, 50))
        to_first = plan(learned, Target(version=first))
        decide(learned, to_first, "garbage")
        held = await soon(follower, lambda held: held.identity.version == first)
        expected = Archive(learned).version(first)
        assert held.sha256 == expected.sha256
        await current.publish(*state(learned, 9, 80))
        nowhere = replace(to_first, before=Target(version=first), to=Target(version="main.999"))
        decide(learned, nowhere, "a slip")
        await warned(caplog, "no version main.999")
        assert follower.held.identity.version == first
        decide(learned, replace(nowhere, before=nowhere.to, to=Target(follow="main")), "mended")
        await soon(follower, lambda held: held.identity.place == (9, 80))

    play(learned, story)


def test_current_holds_one_publication_a_branch_and_wakes_who_waits() -> None:
    """What is asked for before it is there arrives when it is; nothing newer in time is None."""

    async def story() -> None:
        current = NewestWeights(lambda blob: blob)
        older = Publication(Identity("main", 1, 5), "a", 1)
        assert await current.next("main", None, 0.01) is None and not await current.beat(older)
        waiting = asyncio.create_task(current.next("main", None, SOON_S))
        await asyncio.sleep(0)
        assert await current.publish(older, np.zeros(1, np.uint8))
        assert (await waiting).publication == older and await current.next("main", older, 0.01) is None
        assert await current.next("other", None, 0.01) is None
        newer = Publication(Identity("main", 2, 1), "b", 1)  # a higher epoch, though a lower seq
        assert await current.publish(newer, np.ones(1, np.uint8)) and not await current.publish(older, np.zeros(1, np.uint8))
        assert await current.beat(older) and (await current.next("main", older, SOON_S)).publication == newer

    asyncio.run(story())


@pytest.mark.slow
def test_what_is_published_is_one_blob_of_ours(learned: Instance) -> None:
    """Arrays and plain values, nothing that has to be unpickled."""
    _, blob = state(learned, 1, 1)
    assert {"identity", "features.slots", "serve.weights", "golden.rows"} <= set(unpack(bytes(blob), "here"))
