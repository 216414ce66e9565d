"""Callers who leave, and callers who are slow, harm nobody: over real sockets, on both protocols."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import uvicorn
from grpc_calls import answering, asked, call, rows_of
from pipelines import ANSWER_S, TIMEOUT_S
from served_bundles import app, ask, endpoint_of, infer, numbers_bundle, tensor

from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import INLINE_BYTES, Endpoint
from millrace.services.endpoint.http import Bodies, HttpApp
from millrace.services.endpoint.pool import Pool
from millrace.services.protocol import inference_pb2 as pb

BUNDLE = numbers_bundle()
SMALL = json.dumps({"inputs": [tensor("x", "FP64", [1, 3], [1, 2, 3])]}).encode()
ROWS = 8000
LARGE = json.dumps({"inputs": [tensor("x", "FP64", [ROWS, 3], [1.0] * 3 * ROWS)]}).encode()
HEAD = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
assert len(LARGE) > INLINE_BYTES


def blocked(endpoint: Endpoint) -> Callable[[], None]:
    """Both threads of the pool held up until what is returned is called."""
    gate = threading.Event()
    for _ in range(2):
        endpoint.pool._threads.submit(gate.wait)
    return gate.set


@asynccontextmanager
async def listening(endpoint: Endpoint, bodies: Bodies | None = None) -> AsyncIterator[int]:
    """The port of a real HTTP server, as Serve runs one."""
    http_app = HttpApp(endpoint)
    http_app._bodies = bodies or http_app._bodies
    server = uvicorn.Server(uvicorn.Config(http_app, lifespan="off", log_config=None, access_log=False))
    server.install_signal_handlers = lambda: None
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[own]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield own.getsockname()[1]
        finally:
            server.should_exit = True
            await task


def begin(port: int, *sent: bytes) -> socket.socket:
    """A connection on which something was sent."""
    connection = socket.create_connection(("127.0.0.1", port))
    for part in sent:
        connection.sendall(part)
    return connection


def post(port: int, body: bytes) -> tuple[int, dict]:
    """One whole request, sent in one piece, so that its body is never late."""
    with begin(port, HEAD % len(body) + body) as connection:
        connection.settimeout(ANSWER_S)
        answer = http.client.HTTPResponse(connection, method="POST")
        answer.begin()
        return answer.status, json.loads(answer.read())


async def until(true: Callable[[], bool]) -> None:
    """Look again and again, for as long as it takes."""
    async with asyncio.timeout(TIMEOUT_S):
        while not true():
            await asyncio.sleep(0.01)


def test_http_callers_who_leave_at_any_moment_leave_nothing_behind() -> None:
    """In the head, in the body, and before the answer; others are answered meanwhile, and everything is given back."""

    async def talk() -> None:
        here = endpoint_of(BUNDLE)
        bodies = Bodies(ServingConfig(max_bytes=1 << 20))
        async with listening(here, bodies) as port:
            head = HEAD % len(LARGE)
            for part in (head[:20], head, head + LARGE[:50_000]):
                for _ in range(10):
                    begin(port, part).close()
            release = blocked(here)
            waiting = [begin(port, head, LARGE) for _ in range(10)]
            await until(lambda: here.pool.taken == 10 * len(LARGE))
            assert (await asyncio.to_thread(post, port, SMALL))[0] == 200
            for connection in waiting[:9]:
                connection.close()
            release()
            await until(lambda: here.pool.taken == 0)
            assert (await asyncio.to_thread(waiting[9].recv, 15)).startswith(b"HTTP/1.1 200")
            waiting[9].close()
            assert (await asyncio.to_thread(post, port, LARGE))[0] == 200
            await until(lambda: bodies.arrived == 0)

    asyncio.run(talk())


@pytest.mark.parametrize("seconds", [TIMEOUT_S, 1.0])
def test_slow_bodies_hold_nobody_up_and_end(seconds: float) -> None:
    """Hundreds of them at once: others are answered beside them, and each gets 408 when its time is over."""

    async def talk() -> None:
        bodies = Bodies(ServingConfig(body_s=seconds))
        async with listening(endpoint_of(BUNDLE), bodies) as port:
            slow = [begin(port, HEAD % 1000, b"{") for _ in range(300)]
            if seconds == TIMEOUT_S:
                await until(lambda: bodies.arrived == 300)
            for _ in range(5):
                assert (await asyncio.to_thread(post, port, SMALL))[0] == 200
            for connection in slow:
                if seconds < TIMEOUT_S:
                    assert (await asyncio.to_thread(connection.recv, 12)) == b"HTTP/1.1 408"
                connection.close()
            await until(lambda: bodies.arrived == 0)

    asyncio.run(talk())


def test_all_bodies_together_are_bounded() -> None:
    """What is over the bound is refused with 503; what was there goes on."""

    async def talk() -> None:
        bodies = Bodies(ServingConfig(max_bytes=100_000, arriving_bytes=100_000))
        async with listening(endpoint_of(BUNDLE), bodies) as port:
            first = begin(port, HEAD % 100_000, LARGE[:90_000])
            await until(lambda: bodies.arrived == 90_000)
            status, body = await asyncio.to_thread(post, port, b" " * 20_000)
            assert status == 503 and "Ask again" in body["error"]
            assert (await asyncio.to_thread(post, port, SMALL))[0] == 200
            first.close()
            await until(lambda: bodies.arrived == 0)

    asyncio.run(talk())


class ReadsFirst(Bodies):
    """Broken: what is declared is not looked at, so a caller who waits for 100 (Continue) is told to send all of it."""

    async def read(self, receive: Any, declared: bytes = b"") -> bytes:
        return await super().read(receive)


@pytest.mark.parametrize(("bodies", "first"), [(Bodies, b"HTTP/1.1 413 "), (ReadsFirst, b"HTTP/1.1 100 ")])
@pytest.mark.parametrize("length", [1 << 20, 10**17])
def test_a_body_that_is_declared_too_large_is_refused_before_its_caller_sends_it(
    bodies: type[Bodies], first: bytes, length: int
) -> None:
    """Its first answer is 413; what fits is waited for as before."""

    async def talk() -> None:
        async with listening(endpoint_of(BUNDLE), bodies(ServingConfig(max_bytes=(1 << 20) - 1))) as port:
            for size, expected in ((length, first), (len(SMALL), b"HTTP/1.1 100 ")):
                head = (HEAD % size).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
                with begin(port, head) as connection:
                    connection.settimeout(TIMEOUT_S)
                    assert (await asyncio.to_thread(connection.recv, 13)) == expected

    asyncio.run(talk())


async def arrived_late(here: Endpoint, call: Callable[[float], Any]) -> Any:
    """A call that waits for the pool, and whose time will be over there; on a slow machine it is given more to arrive in."""
    before, late_s, late = here.pool.taken, 0.5, call(0.5)
    while here.pool.taken == before:
        if late.done():
            late_s, late = 2 * late_s, call(2 * late_s)
        await asyncio.sleep(0.001)
    return late


def test_cancelled_and_late_calls_leave_nothing_behind() -> None:
    """Their work is dropped or ends by itself; others are answered meanwhile, and everything is given back."""

    async def talk() -> None:
        here = endpoint_of(BUNDLE)
        large, small = asked(rows_of(np.ones((ROWS, 3)))), asked(rows_of(np.ones((1, 3))))
        async with answering(here) as client:
            release = blocked(here)
            calls, kept = [client("ModelInfer", large) for _ in range(9)], client("ModelInfer", large)
            await until(lambda: here.pool.taken == 10 * large.ByteSize())
            calls.append(await arrived_late(here, lambda late_s: client("ModelInfer", large, timeout=late_s)))
            assert (await client("ModelInfer", small)).model_version == "main.41"
            for pending in calls[:9]:
                pending.cancel()
            for pending in calls:
                with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                    await pending
            release()
            answer = await kept
            assert len(answer.raw_output_contents[0]) == ROWS * 2 * 8
            await until(lambda: here.pool.taken == 0)
            assert (await client("ModelInfer", large)).outputs[0].shape == [ROWS, 2]

    asyncio.run(talk())


def test_work_that_fails_gives_its_place_back() -> None:
    """Its error reaches its caller, and the bound holds for the next."""

    async def work() -> None:
        pool = Pool(1, waiting_bytes=10)
        with pytest.raises(ZeroDivisionError):
            await pool.run(10, lambda: 1 / 0)
        await until(lambda: pool.taken == 0)
        assert await pool.run(10, lambda: 5) == 5

    asyncio.run(work())


def test_statistics_count_what_this_replica_answered_on_both_protocols() -> None:
    """Rows, requests, failures and where the time went, in Triton's shape; the same over both."""
    here = endpoint_of(BUNDLE)
    for rows in (1, 2, 3000):
        assert infer(HttpApp(here), {"inputs": [tensor("x", "FP64", [rows, 3], [1.0] * 3 * rows)]}).status == 200
        assert call(here, "ModelInfer", asked(rows_of(np.ones((rows, 3)))))[0].code == "OK"
    assert infer(HttpApp(here), {"inputs": []}).status == 400
    assert call(here, "ModelInfer", b"\xff")[0].code == "INVALID_ARGUMENT"
    told = ask(HttpApp(here), "GET", "/v2/models/digits/stats").json["model_stats"][0]
    answer = call(here, "ModelStatistics", pb.ModelStatisticsRequest(name="digits"))[1].model_stats[0]
    assert (told["name"], told["version"], told["inference_count"], told["execution_count"]) == ("digits", "main.41", 6006, 6)
    assert (answer.inference_count, answer.execution_count, answer.last_inference) == (6006, 6, told["last_inference"])
    stats = told["inference_stats"]
    assert {name: counts["count"] for name, counts in stats.items()} == {
        "success": 6,
        "fail": 2,
        "queue": 0,
        "compute_input": 6,
        "compute_infer": 6,
        "compute_output": 6,
    }
    assert stats["success"]["ns"] == sum(stats[f"compute_{part}"]["ns"] for part in ("input", "infer", "output")) > 0
    assert answer.inference_stats.success.ns == stats["success"]["ns"] and answer.inference_stats.fail.count == 2
    assert ask(app(BUNDLE), "GET", "/v2/models/digits/stats").json["model_stats"][0]["last_inference"] == 0
    assert ask(app(BUNDLE), "GET", "/v2/models/other/stats").status == 404
