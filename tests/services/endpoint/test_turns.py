"""The bounds of a replica that answers by itself, and how it is noticed that it no longer does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from grpc_calls import FakeCall
from served_bundles import ask, endpoint_of, infer, numbers_bundle, tensor

from millrace.learners.errors import MillraceError
from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.grpc import GrpcApp
from millrace.services.endpoint.http import HttpApp
from millrace.services.endpoint.servers import Servers, UnixSockets
from millrace.services.endpoint.turns import Turns
from millrace.services.errors import OverloadedError


def test_so_many_work_so_many_wait_and_the_next_is_refused() -> None:
    """Who waits works once another is done, in order."""

    async def played() -> tuple[list[str], str]:
        turns, done, heard = Turns(ServingConfig(in_flight=2, queued=1)), asyncio.Event(), list[str]()

        async def work(name: str) -> None:
            async with turns:
                heard.append(name)
                await done.wait()

        working = [asyncio.create_task(work(name)) for name in "abc"]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as refused:
            await work("d")
        assert heard == ["a", "b"] and turns.waiting == 1
        done.set()
        await asyncio.gather(*working)
        await work("e")
        return heard, str(refused.value)

    heard, said = asyncio.run(played())
    assert heard == ["a", "b", "c", "e"] and "serving.in_flight" in said and "serving.queued" in said


def test_over_its_bounds_both_protocols_ask_to_come_again() -> None:
    """503 with Retry-After, and RESOURCE_EXHAUSTED; health is answered all the same."""
    endpoint = endpoint_of(numbers_bundle())
    endpoint.turns._limits, endpoint.turns._free = ServingConfig(in_flight=1, queued=1), asyncio.Semaphore(0)
    endpoint.turns.waiting = 1
    heard = infer(HttpApp(endpoint), {"inputs": [tensor("x", "FP64", [1, 3], [1.0, 2.0, 3.0])]})
    assert heard.status == 503 and heard.headers["retry-after"] == "1" and "serving.in_flight" in heard.json["error"]
    context = FakeCall("ipv4:127.0.0.1:5", ())
    asyncio.run(GrpcApp(endpoint).answer("ServerMetadata", b"", context))
    assert context.code == "RESOURCE_EXHAUSTED"
    assert ask(HttpApp(endpoint), "GET", "/v2/health/live").status == 200


def after(change: Callable[[Servers, UnixSockets], object], looks: int = 1200) -> str:
    """What a replica's health check says after something has happened to its servers; nothing where all is well."""

    async def played(folder: Path) -> str:
        place = UnixSockets(folder / "h", folder / "g")
        servers = Servers(endpoint_of(numbers_bundle()), place, 1.0)
        await servers.open()
        while not servers._http.started:
            await asyncio.sleep(0.01)
        servers.check()
        changed = change(servers, place)
        try:
            if isinstance(changed, Awaitable):
                await changed
            for _ in range(looks):
                await asyncio.sleep(0.05)
                servers.check()
        except MillraceError as error:
            return str(error)
        finally:
            await servers.close()
        return ""

    with TemporaryDirectory(dir="/tmp") as folder:
        return asyncio.run(played(Path(folder)))


def test_health_fails_when_a_listener_or_its_task_is_gone() -> None:
    """So that Serve makes another replica."""
    assert after(lambda servers, place: None, 3) == ""
    assert "/h is gone" in after(lambda servers, place: place.http.unlink())
    assert "/g is gone" in after(lambda servers, place: place.grpc.unlink())
    assert "http is gone" in after(lambda servers, place: setattr(servers._http, "should_exit", True))
    assert "grpc is gone" in after(lambda servers, place: servers._calls.stop(0))
