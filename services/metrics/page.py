"""The page that Prometheus scrapes, on a port of its own, and beside it whether `up` goes on.

The one door to ``prometheus_client``. `up` serves both, so they outlive every replica. Nobody is asked unless one scrapes.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from millrace.services.metrics.definitions import METRICS, SOURCES, Answer, Distribution, Metric, Sample, Samples
from millrace.services.metrics.sources import Source

log = logging.getLogger("millrace")

OF_ENGINES = "vllm:"  # begins the names of vLLM's own series
METRICS_PATH = "/metrics"
LIVE_PATH = "/livez"
PATIENCE_S = 5.0  # for the sources to answer; Prometheus waits 10 s unless told otherwise
SILENT_S = 10.0  # that a caller may take to send a request, or to take the page
WHOLE_S = 30.0  # and from its connection to its last byte, however steadily it trickles
CALLERS = 64  # that are served at once; a further one takes the place of the oldest of the address that has most
SCRAPES = 16  # at once; a further one is told to come again
TEXT = ("Content-Type", "text/plain; charset=utf-8")

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

FAMILIES: Mapping[str, Callable[..., Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class Gathered(Collector):
    """What this process knows by itself, and what its sources say."""

    def __init__(self, own: Callable[[], Samples], sources: Sequence[Source]) -> None:
        self._own = own
        self._sources = sources

    def collect(self) -> Iterable[Family]:
        """All that could be had by now, and which source gave nothing."""
        until_s = time.monotonic() + PATIENCE_S
        for source in self._sources:
            source.want()
        samples, series = self._own(), list[tuple[str, str]]()
        for source in self._sources:
            answer = source.answer(until_s)
            samples += [*answer.samples, Sample("millrace_source_up", (source.name,), answer.is_whole)]
            series += answer.series
        return [*families(samples), *families_of_engines(series)]


def families(samples: Samples) -> list[Family]:
    """Samples under their metric, with its meaning; metrics without any are left out."""
    by_name: dict[str, Samples] = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample)
    return [_family(metric, by_name.pop(metric.name)) for metric in METRICS if metric.name in by_name]


def families_of_engines(series: Iterable[tuple[str, str]]) -> list[Family]:
    r"""What engines tell of themselves, each sample under its replica's name; what their process tells beside it is left out.

    >>> [made] = families_of_engines([("r1", "# TYPE vllm:waiting gauge\nvllm:waiting{engine=\"0\"} 2\npython_info 1\n")])
    >>> made.samples[0].labels, made.samples[0].value
    ({'engine': '0', 'replica': 'r1'}, 2)
    """
    merged: dict[str, Family] = {}
    for replica, text in series:
        for told in text_string_to_metric_families(text):
            if told.name.startswith(OF_ENGINES) and not told.name.endswith("_created"):
                family = merged.setdefault(told.name, Family(told.name, told.documentation, told.type))
                for sample in told.samples:
                    family.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    return list(merged.values())


def _family(metric: Metric, samples: Samples) -> Family:
    family = FAMILIES[metric.kind](metric.name, metric.meaning, labels=metric.labels)
    for sample in samples:
        if isinstance(sample, Distribution):
            bounds = [*map(floatToGoString, sample.bounds_s), "+Inf"]
            buckets = list(zip(bounds, accumulate(sample.counts), strict=True))
            family.add_metric(sample.labels, buckets=buckets, sum_value=sample.sum_s)
        else:
            family.add_metric(sample.labels, sample.value)
    made: Family = family
    return made


class Page:
    """Listens from now until it is closed, and answers from ``begin`` on."""

    def __init__(self, host: str, port: int) -> None:
        """Raises: OSError where the port cannot be had."""
        self._server = _Server((host, port))
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._sources: list[Source] = []

    def begin(
        self, own: Callable[[], Samples], asked: Mapping[str, Callable[[], Answer]], why_stuck: Callable[[], str]
    ) -> None:
        """Answer from now on. ``own``: what needs nobody to answer; ``asked``: the sources.

        ``why_stuck``: why this process no longer goes on; nothing where it does.
        """
        self._sources = [Source(name, asked[name]) for name in SOURCES if name in asked]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Gathered(own, self._sources))
        self._server.set_app(_by_path({METRICS_PATH: _few(make_wsgi_app(registry)), LIVE_PATH: _live(why_stuck)}))
        self._thread.start()

    def rest(self, why_stuck: Callable[[], str]) -> None:
        """Tell from now on only whether this process goes on; no source is asked any more."""
        self._server.set_app(_by_path({LIVE_PATH: _live(why_stuck)}))
        until_s = time.monotonic() + PATIENCE_S
        for source in self._sources:
            source.answer(until_s)

    def close(self) -> None:
        """Nobody is answered any more."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _by_path(apps: Mapping[str, Any]) -> App:
    """Each at its path, and nothing elsewhere."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if (chosen := apps.get(environ["PATH_INFO"])) is not None:
            answer: Iterable[bytes] = chosen(environ, start_response)
            return answer
        start_response("404 Not Found", [TEXT])
        return [f"There is now: {', '.join(apps)}.\n".encode()]

    return app


def _few(app: Any) -> App:
    """The same for so many at once: a source may keep each waiting, and a thread with it."""
    free = threading.Semaphore(SCRAPES)

    def bounded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not free.acquire(blocking=False):
            start_response("503 Service Unavailable", [TEXT, ("Retry-After", "1")])
            return [f"{SCRAPES} scrapes are under way.\n".encode()]
        try:
            answer: Iterable[bytes] = app(environ, start_response)
            return answer
        finally:
            free.release()

    return bounded


def _live(why_stuck: Callable[[], str]) -> App:
    """200 while the process goes on, else 503 with why it does not."""

    def app(_: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        reason = why_stuck()
        start_response("503 Service Unavailable" if reason else "200 OK", [TEXT])
        return [f"{reason or 'It goes on.'}\n".encode()]

    return app


def _end(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended meanwhile
        connection.shutdown(socket.SHUT_RDWR)


class _Requests(WSGIRequestHandler):
    timeout = SILENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line a scrape would fill the log."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # that wait to be accepted; by default 5, and a further one tries again after a second

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._address = address
        self._callers: dict[socket.socket, str] = {}  # and their addresses, the oldest first
        self._changing = threading.Lock()
        super().__init__(address, _Requests)

    def server_bind(self) -> None:
        """Without looking its own name up, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self._address
        self.setup_environ()

    def _let_in(self, request: socket.socket, host: str) -> None:
        """So nobody who takes many keeps out whoever asks, in a moment, whether `up` lives."""
        with self._changing:
            if len(self._callers) >= CALLERS:
                ((most, _),) = Counter(self._callers.values()).most_common(1)
                oldest = next(caller for caller, address in self._callers.items() if address == most)
                del self._callers[oldest]
                _end(oldest)
            self._callers[request] = host

    def process_request(self, request: Any, client_address: Any) -> None:
        self._let_in(request, client_address[0])
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        late = threading.Timer(WHOLE_S, _end, (request,))
        late.daemon = True
        try:
            late.start()
            super().process_request_thread(request, client_address)
        finally:
            late.cancel()
            with self._changing:
                self._callers.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who leaves is no error of ours."""
        log.debug("A scrape from %s was cut off.", client_address, exc_info=True)


def text_of(registry: CollectorRegistry) -> str:
    """What Prometheus would read of a registry that another library fills."""
    return generate_latest(registry).decode()
