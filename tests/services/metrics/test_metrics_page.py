"""The page that Prometheus scrapes: its text, its port, a source that hangs, fails or is slow; and whether `up` goes on."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fronted import heard
from pipelines import ANSWER_S, millrace, pipeline_in
from served_pipeline import until

from millrace.services.errors import BusyError
from millrace.services.metrics import sources
from millrace.services.metrics.definitions import LOG, REPLICAS, TRAINER, Answer, Distribution, Sample, Samples
from millrace.services.serving.ports import free_port

pytest.importorskip("prometheus_client", reason="the extra `serve`, which brings prometheus_client, is not installed")
from prometheus_client.parser import text_string_to_metric_families

from millrace.services.metrics import page as paging
from millrace.services.metrics import pulse as pulses
from millrace.services.metrics.page import CALLERS, SCRAPES, Page
from millrace.services.metrics.pulse import Pulse
from millrace.services.serving.measured import metrics_port

OWN: Samples = [Sample("millrace_draining", (), False), Sample("millrace_build_info", ("0.1.0", '3"\\\n'), 1)]
TOLD: Samples = [
    Sample("millrace_records_total", ("main",), 3_000_000_001),
    Sample("millrace_records_total", ("other",), 2),
    Distribution("millrace_answer_seconds", ("r1", "grpc"), (0.001, 0.5, 10.0), (5, 0, 2, 1), 12.5),
]
ASKED: Mapping[str, Callable[[], Answer]] = {
    LOG: lambda: Answer(TOLD, True),
    TRAINER: lambda: Answer([Sample("millrace_trainer_running", ("main",), False)], False),
    REPLICAS: lambda: Answer([], True),
}


def said(port: int, path: str = "/metrics") -> tuple[int, str]:
    """Status and text of one request."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def scraped(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus' own parser makes of the page: name and labels of each sample, and its value."""
    status, text = said(port)
    assert status == 200
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(values) == len(samples), "a sample stands twice"
    return values


@contextmanager
def serving(asked: Mapping[str, Callable[[], Answer]] = ASKED, host: str = "127.0.0.1") -> Iterator[int]:
    """A page on a port of its own, with ``asked`` as its sources."""
    port = free_port()
    with closing(Page(host, port)) as page:
        page.begin(lambda: [*OWN], {**ASKED, **asked}, str)
        yield port


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """Of a sample."""
    return name, frozenset(labels.items())


def test_the_page_is_what_prometheus_reads() -> None:
    """Every sample under its name and labels, also of letters that have to be escaped; buckets add up."""
    with serving() as port:
        values = scraped(port)
    buckets = {"0.001": 5, "0.5": 5, "10.0": 7, "+Inf": 8}
    assert values == {
        key("millrace_draining"): 0,
        key("millrace_build_info", version="0.1.0", python='3"\\\n'): 1,
        key("millrace_records_total", branch="main"): 3_000_000_001,
        key("millrace_records_total", branch="other"): 2,
        key("millrace_trainer_running", branch="main"): 0,
        **{key("millrace_answer_seconds_bucket", replica="r1", protocol="grpc", le=le): n for le, n in buckets.items()},
        key("millrace_answer_seconds_count", replica="r1", protocol="grpc"): 8,
        key("millrace_answer_seconds_sum", replica="r1", protocol="grpc"): 12.5,
        **{key("millrace_source_up", source=name): name != TRAINER for name in ASKED},
    }


def test_a_source_that_fails_keeps_nothing_of_the_others_back() -> None:
    """It is asked again at the next scrape, and is there again once it answers."""
    broken = threading.Event()
    broken.set()

    def fails() -> Answer:
        if broken.is_set():
            raise ZeroDivisionError
        return Answer(TOLD, True)

    with serving({LOG: fails}) as port:
        values = scraped(port)
        assert values[key("millrace_source_up", source=LOG)] == 0 and key("millrace_records_total", branch="main") not in values
        assert values[key("millrace_trainer_running", branch="main")] == 0
        broken.clear()
        until(lambda: scraped(port)[key("millrace_source_up", source=LOG)] == 1)
        assert scraped(port)[key("millrace_records_total", branch="other")] == 2


def test_a_source_that_hangs_is_asked_once_and_the_others_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many scrape meanwhile; what it says in the end is in the next scrape."""
    monkeypatch.setattr(paging, "PATIENCE_S", 0.2)
    ends, asked = threading.Event(), list[int]()

    def hangs() -> Answer:
        asked.append(1)
        ends.wait()
        return Answer(TOLD, True)

    with serving({LOG: hangs}) as port:
        for _ in range(3):
            values = scraped(port)
            assert values[key("millrace_source_up", source=LOG)] == 0 and key("millrace_draining") in values
        assert asked == [1]
        ends.set()
        until(lambda: key("millrace_records_total", branch="main") in scraped(port))


def test_many_scrapes_cost_as_one_and_no_scrape_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are asked when somebody scrapes, and not again while what they said is fresh."""
    monkeypatch.setattr(sources, "FRESH_S", 1e9)
    asked = list[int]()

    def counted() -> Answer:
        asked.append(1)
        return Answer(TOLD, True)

    with serving({LOG: counted}) as port:
        assert said(port, "/")[0] == 404 and asked == []
        for _ in range(20):
            scraped(port)
        assert asked == [1]


def test_a_caller_that_trickles_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """However steadily its request comes, it has to be whole in time."""
    monkeypatch.setattr(paging, "WHOLE_S", 0.5)
    with serving() as port, socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as trickling:
        trickling.sendall(b"GET /metrics HTTP/1.1\r\n")
        ended = threading.Event()

        def trickle() -> None:
            while not ended.wait(0.05):
                with suppress(OSError):
                    trickling.sendall(b"a: b\r\n")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(trickle)
            try:
                answer = heard(trickling)
            finally:
                ended.set()
        assert b" 200 " not in answer


def test_callers_that_say_nothing_keep_no_scrape_out_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a time."""
    monkeypatch.setattr(paging._Requests, "timeout", 0.5)
    with serving() as port, ExitStack() as silent:
        connections = [silent.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(CALLERS)]
        assert {heard(connection) for connection in connections} == {b""}, "ended, and nothing was said"
        assert said(port)[0] == 200


@pytest.mark.parametrize("addresses", [1, 16])
def test_who_asks_whether_it_lives_is_heard_while_others_take_all_places(addresses: int) -> None:
    """From their own address, and from another; those who took most have lost their oldest, and no more than one each time."""
    with serving(host="0.0.0.0") as port, flood(port, addresses) as silent:
        for source in ("127.0.1.0", "127.0.9.9"):
            assert [lives_from(port, source) for _ in range(20)] == [200] * 20
        until(lambda: len(silent.ended) >= 20)


def test_the_flood_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: where all have the same right to stay, whoever comes last loses, and nobody hears whether it lives."""
    monkeypatch.setattr(paging._Server, "_let_in", turn_the_newest_away)
    with serving(host="0.0.0.0") as port, flood(port, 16) as silent:
        until(lambda: len(silent.made) > CALLERS)
        until(lambda: lives_from(port, "127.0.9.9") == 0)


def turn_the_newest_away(self: Any, request: socket.socket, host: str) -> None:
    """As it was."""
    with self._changing:
        if len(self._callers) >= CALLERS:
            paging._end(request)
        else:
            self._callers[request] = host


def lives_from(port: int, source: str) -> int:
    """The status that an address hears; 0: its connection is ended unheard."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_S, (source, 0)) as connection:
        try:
            connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            return int((heard(connection).split() or [b"", b"0"])[1])
        except ConnectionError:
            return 0


class Silent:
    """Connections that say nothing, and come again."""

    def __init__(self) -> None:
        self.made: list[socket.socket] = []
        self.ended: list[socket.socket] = []

    def connect(self, port: int, source: str) -> None:
        """One more."""
        self.made.append(socket.create_connection(("127.0.0.1", port), ANSWER_S, (source, 0)))

    def come_again(self, port: int) -> None:
        """Those who were ended."""
        ended = select.select([one for one in self.made if one not in self.ended], [], [], 0.01)[0]
        for one in ended:
            self.ended.append(one)
            self.connect(port, one.getsockname()[0])


@contextmanager
def flood(port: int, addresses: int) -> Iterator[Silent]:
    """More of them than there are places, from so many addresses, until the block ends."""
    silent, over = Silent(), threading.Event()

    def go_on() -> None:
        while not over.is_set():
            silent.come_again(port)

    for at in range(2 * CALLERS):
        silent.connect(port, f"127.0.1.{at % addresses}")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go_on)
        try:
            yield silent
        finally:
            over.set()
    for connection in silent.made:
        connection.close()


def test_more_scrapes_than_it_takes_are_told_to_come_again() -> None:
    """Each has a thread for as long as a source hangs; whether `up` lives is told meanwhile."""
    ends = threading.Event()

    def hangs() -> Answer:
        ends.wait()
        return Answer(TOLD, True)

    with serving({LOG: hangs}) as port, ThreadPoolExecutor(2 * SCRAPES) as pool:
        try:
            told = sorted(status for status, _ in pool.map(lambda _: said(port), range(2 * SCRAPES)))
            assert said(port, "/livez")[0] == 200
        finally:
            ends.set()
        assert set(told) == {200, 503} and told.count(200) >= SCRAPES


def test_it_tells_whether_the_process_goes_on_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the beats of a loop, also of one that has said that its next step takes long; and asks no source for it."""
    asked, pulse = list[int](), Pulse()

    def why_stuck() -> str:
        return f"late by {pulse.late_s()} s" if pulse.late_s() else ""

    def counted() -> Answer:
        asked.append(1)
        return Answer(TOLD, True)

    port = free_port()
    with closing(Page("127.0.0.1", port)) as page:
        page.begin(lambda: [*OWN], {**ASKED, LOG: counted}, why_stuck)
        assert said(port, "/livez") == (200, "It goes on.\n")
        monkeypatch.setattr(pulses, "PATIENCE_S", 0.0)
        status, reason = said(port, "/livez")
        assert status == 503 and reason.startswith("late by ")
        pulse.beat(next_s=3600)
        assert said(port, "/livez")[0] == 200 and asked == []


def test_at_rest_it_tells_only_whether_the_process_goes_on() -> None:
    """While `up` ends, nobody is asked any more, and the end may take minutes."""
    port = free_port()
    with closing(Page("127.0.0.1", port)) as page:
        page.begin(lambda: [*OWN], ASKED, str)
        assert said(port)[0] == 200
        page.rest(str)
        assert said(port)[0] == 404 and said(port, "/livez")[0] == 200
        page.rest(lambda: "It hangs.")
        assert said(port, "/livez") == (503, "It hangs.\n")


def test_a_port_that_is_taken_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """By the option that names another, before anything is started; and so is an address that is not here, or no address."""
    pipeline_in(tmp_path, rows=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BusyError, match=f"127.0.0.1:{port}: .* give another --metrics-port"):
            metrics_port("127.0.0.1", port).__enter__()
        done = millrace("up", "digits.toml", "--metrics-port", port, "--port", free_port(), cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"127.0.0.1:{port}" in done.stderr
    with pytest.raises(BusyError, match="no such address; give another --metrics-host"):
        metrics_port("192.0.2.77", free_port()).__enter__()
    for words, why in ((["--metrics-host", "here"], "--metrics-host here"), (["--port", "9464"], "--metrics-port 9464")):
        done = millrace("up", "digits.toml", "--metrics-port", "9464", *words, cwd=tmp_path)
        assert done.returncode == 2 and why in done.stderr and done.stderr.count("\n") == 1
