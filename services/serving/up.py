"""`millrace up`: Ray on this machine, the Serve application on it, until Ctrl-C.

Ray and Serve read their settings when they are imported, so they are set here, before.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import ConfigError, MillraceError
from millrace.services.config.config import set_environment
from millrace.services.pipeline.instance import Instance
from millrace.services.protocol.access import SCOPES, Access, access, own_token, read_tenants, read_tokens
from millrace.services.protocol.callers import is_loopback
from millrace.services.serving.companion import companion
from millrace.services.serving.door import Door, own_folder, words
from millrace.services.serving.ending import END_S, MARK_S, SLACK_S
from millrace.services.serving.event_socket import received
from millrace.services.serving.events import EventLines, Form
from millrace.services.serving.front import ROWS, Answers
from millrace.services.serving.guard import guarded_start
from millrace.services.serving.listeners import family, listeners, title
from millrace.services.serving.measured import measured, metrics_port
from millrace.services.serving.seats import drain
from millrace.services.serving.shared_memory import object_store_bytes
from millrace.services.serving.status import EndpointAddress, place, placed, serving_alone, ways_to_ask, what_fills
from millrace.services.training.learnable import going_on, refuse_unlearnable

if TYPE_CHECKING:
    from millrace.services.metrics.pulse import Pulse
    from millrace.services.serving.replica import Serving

log = logging.getLogger("millrace")

POLL_S = 1.0  # between two looks whether Ray is still there
START_S = 300  # that each part of Ray or Serve may take to start or answer: who has died is noticed at once
RAY_PARTS = {"gcs_server", "raylet"}  # without them nothing goes on, and Ray starts neither again
TRIES = 3  # to start Ray
CPUS = 4  # logical ones: what runs here is placed by fractions of them, whatever the machine has


Kind = Callable[[], type[Any]] | None  # of replicas; None: predictors, which answer rows


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the endpoint listens."""

    host: str = "127.0.0.1"
    port: int = 8000  # of HTTP
    grpc_port: int = 8001
    replicas: int = 2  # of a language model 1 is usual: each has the whole model in memory
    token: str | None = None  # for everything
    tokens: Path | None = None  # a file of tokens with scopes
    start_s: int = START_S  # that each part of Ray or Serve may take to start or answer
    drain_s: float = 0.0  # that answers go on once it is to end, while readiness says no
    metrics_port: int = 0  # of what Prometheus scrapes; 0: there are no metrics
    metrics_host: str = "127.0.0.1"
    proxies: bool = False  # whether Serve's own proxies take the requests in, as on a Ray cluster; no option leads here

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or is_loopback(self.host)

    def __post_init__(self) -> None:
        """Raise ConfigError for a setting out of range."""
        for option, host in (("--host", self.host), ("--metrics-host", self.metrics_host)):
            try:
                ip_address("127.0.0.1" if host == "localhost" else host)
            except ValueError as error:
                raise ConfigError(f"{option} {host}: give an IP address, such as 127.0.0.1 or 0.0.0.0.") from error
        if self.port == self.grpc_port:
            raise ConfigError(f"--port and --grpc-port are both {self.port}; give each its own.")
        if self.metrics_port in (self.port, self.grpc_port):
            raise ConfigError(f"--metrics-port {self.metrics_port} is the port of answers, too; give it one of its own.")
        if self.tokens is not None:
            read_tokens(self.tokens)

    def access(self, own_token_path: Path) -> Access:
        """Who may call: with the tokens given, else with one of our own in the file ``own_token_path``.

        Raises: ConfigError, StorageError.
        """
        token_scopes = {} if self.tokens is None else read_tokens(self.tokens)
        token_scopes |= {self.token: SCOPES} if self.token else {}
        shown = token_scopes or {own_token(own_token_path): SCOPES}
        tenants = {} if self.tokens is None else read_tenants(self.tokens)
        return access(shown, local_is_open=self.loopback and not token_scopes, tenants=tenants)


def up(instance: Instance, branch: str, listening: Listening, lines: EventLines, kind: Kind = None) -> None:
    """Serve and learn until SIGINT or SIGTERM; then the trainer marks a version and everything ends.

    ``lines`` prints what every process of it says; ``kind`` gives the class of its replicas once Ray's settings are made.

    Raises: MillraceError where Ray is not installed or does not start, LearnerError,
    ConfigError or DamageError where no trainer could take the branch.
    """
    if instance.loaded.pipeline.llm is not None and kind is None:
        raise MillraceError(
            f"{instance.loaded.pipeline.name} has a language model to answer, and no predictor. Run `millrace up`."
        )
    if find_spec("ray") is None:
        raise MillraceError(f"Serving needs Ray. {how_to_get('serve')}")
    stop = Stop()
    stop.on_signals()
    with serving_alone(instance):
        branch = going_on(instance, branch)
        refuse_unlearnable(instance, branch)
        _serve(instance, branch, listening, lines, stop, kind)


def _serve(instance: Instance, branch: str, listening: Listening, lines: EventLines, stop: Stop, kind: Kind) -> None:
    limits, store_bytes = instance.loaded.pipeline.serving, object_store_bytes()
    prepare_environment(limits.max_bytes, listening.start_s)
    endpoint_place = place(listening.host, listening.port, listening.grpc_port, words(listening.proxies))
    ports = listening.port, listening.grpc_port
    scraped = metrics_port(listening.metrics_host, listening.metrics_port)
    with closing(Door(listening.host, ports, listening.proxies)) as door, scraped as page, own_folder() as folder:
        sockets = door.open(folder, listening.replicas, limits, _answers(instance))
        serving = _serving(instance.absolute, branch, listening, (sockets, door.has_front))
        with received(sockets, lines.show):
            log.info("Ray starts; each part of it may take up to %d s (--start-s).", listening.start_s)
            _start(serving, folder, store_bytes, stop, lines.form, kind)
            with _ended(serving, door):
                if stop.asked.is_set():
                    return
                with (
                    placed(instance, endpoint_place),
                    mirrored(instance, lines),
                    verified(instance, lines),
                    measured(page, serving) as pulse,
                ):
                    _say_where(serving, listening, endpoint_place, lines)
                    _watch(stop, pulse)
                    pulse.beat(listening.drain_s + END_S)
                    drain(sockets)
                    stop.again.wait(listening.drain_s)


def _answers(instance: Instance) -> Answers:
    """A completion takes as long as it takes, and is not generated twice."""
    llm = instance.loaded.pipeline.llm
    return ROWS if llm is None else Answers(llm.answer_s, again=False)


@contextmanager
def _ended(serving: Serving, door: Door) -> Iterator[None]:
    """Whatever ends the block: nobody new comes in, then all ends in order."""
    try:
        yield
    finally:
        door.close()
        _end(serving)


def mirrored(instance: Instance, lines: EventLines) -> AbstractContextManager[None]:
    """The mirror in MLflow for as long as the block runs, where the pipeline has one; in a process of its own."""
    if not instance.loaded.pipeline.mlflow.uri:
        return nullcontext()
    return companion(instance.words("mirror"), lines.show)


def verified(instance: Instance, lines: EventLines) -> AbstractContextManager[None]:
    """Versions are folded again in a process of its own, as they are made, for as long as the block runs."""
    if not instance.loaded.pipeline.versions.verify_budget_s:
        return nullcontext()
    return companion([*instance.words("verify"), "--watch"], lines.show)


class Stop:
    """What SIGINT and SIGTERM ask for: an end, and when they come again a quicker one."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.again = threading.Event()

    def on_signals(self) -> None:
        """Hear signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._hear())

    def _hear(self) -> None:
        if self.asked.is_set():
            self.again.set()
        self.asked.set()


def _watch(stop: Stop, pulse: Pulse) -> None:
    """Wait for the end; ``pulse`` beats meanwhile.

    Raises: MillraceError where Ray has died, which nothing here can start again: whoever supervises this process can.
    """
    core = _ray_processes()
    while not stop.asked.wait(POLL_S):
        pulse.beat()
        if gone := core - _ray_processes():
            raise MillraceError(
                f"Ray has died here ({', '.join(sorted(name for _, name in gone))}), so nothing learns. Run again."
            )


def _ray_processes() -> set[tuple[int, str]]:
    """Process and name of those that run."""
    return {(pid, name) for pid in family(os.getpid()) if (name := title(pid)) in RAY_PARTS}


def prepare_environment(max_bytes: int, start_s: int) -> None:
    """Settings that Ray and Serve read when they are imported.

    ``max_bytes``: of one request over gRPC; ``start_s``: that each part may take to start or answer.
    """
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_AUTO_CONNECT": "0",  # else a scrape at the very end would start another Ray
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: Ray takes this machine's address to be 127.0.0.1
        "RAY_enable_metrics_collection": "0",  # else an agent listens everywhere and tells whoever asks
        "RAY_AUTH_MODE": "token",  # only this instance's processes may use Ray's own ports
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",  # else every other process of the machine comes before replicas
        "RAY_gcs_server_port_wait_time_s": str(start_s),  # Ray's default: 30, as for the next
        "RAY_py_gcs_connect_timeout_s": str(start_s),
        "RAY_gcs_server_request_timeout_seconds": str(start_s),  # 60, as for the next
        "RAY_worker_register_timeout_seconds": str(start_s),
        "RAY_agent_register_timeout_ms": str(1000 * start_s),  # 100 s
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # else Serve starts a proxy on the head all the same
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # else a replica has two event loops
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(start_s),  # 5; after three of them the proxy is killed
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # 0.1; idle, the controller takes half as much of a core so
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(max_bytes),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    set_environment(settings)


def _serving(instance: Instance, branch: str, listening: Listening, way: tuple[Path, bool]) -> Serving:
    """``way``: the folder of the replicas' sockets, and whether a front stands before them."""
    from millrace.services.serving import replica as predictor

    allowed = listening.access(token_path(instance))
    addresses = (listening.host, listening.port, listening.grpc_port)
    return predictor.Serving(instance, branch, *addresses, listening.replicas, allowed, *way, listening.proxies)


def _start(serving: Serving, folder: Path, store_bytes: int, stop: Stop, form: Form, kind: Kind) -> None:
    """Ray and the application on it, unless it is to end before. ``folder``: for Ray's files. Raises: MillraceError."""
    import ray

    from millrace.services.serving import replica as predictor

    try:
        _start_ray(folder, store_bytes, stop, form)
        if not stop.asked.is_set():
            log.info("Ray runs; %d replicas start, each says when it takes requests in.", serving.replicas)
            with guarded_start(_rays_logs(folder), form):
                predictor.start(serving, None if kind is None else kind())
        stop.on_signals()
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        ray.shutdown()
        raise MillraceError(f"Serving did not start: {error} Its logs lie in {_rays_logs(folder)}.") from error


def _start_ray(folder: Path, store_bytes: int, stop: Stop, form: Form) -> None:
    """Again where it fails: on a busy machine Ray's raylet gives its own agents up after 30 s, which nothing can set.

    While Ray starts it puts handlers of its own in the place of ours, which end us at once; so signals wait. What it starts
    keeps this mask: a signal to all of our processes is heard by us alone, who end them in order.

    Raises: MillraceError.
    """
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        for attempt in range(1, TRIES + 1):
            error = _tried_ray(folder, store_bytes, form)
            if error is None or signal.sigpending() & signals:
                return
            if attempt == TRIES:
                raise MillraceError(f"Ray did not start: {error} Its logs lie in {_rays_logs(folder)}.")
            log.warning("Ray did not start (%s); it is started again.", error)
    finally:
        stop.on_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _tried_ray(folder: Path, store_bytes: int, form: Form) -> Exception | None:
    """Why Ray does not run now; nothing where it does."""
    import ray

    try:
        with guarded_start(_rays_logs(folder), form):
            ray.init(
                address="local",
                num_cpus=CPUS,
                namespace="millrace",
                include_dashboard=False,
                object_store_memory=store_bytes,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder / "r"),  # Ray lets everybody into its own folder, and nobody comes through ours
            )
    except Exception as error:
        ray.shutdown()
        return error
    return None


def _rays_logs(folder: Path) -> str:
    return f"{folder}/r/session_latest/logs"


def token_path(instance: Instance) -> Path:
    """Where the token lies that is made where none is given."""
    return instance.folder / "token"


def _say_where(serving: Serving, listening: Listening, at: EndpointAddress, lines: EventLines) -> None:
    path = token_path(serving.instance)
    token_sources = " and ".join(
        [*(["MILLRACE_TOKEN"] if listening.token else []), *map(str, filter(None, [listening.tokens]))]
    )
    token_holders = "everybody" if not serving.access.local_is_open else "callers from other machines"
    for line in (
        *ways_to_ask(serving, at),
        f"ready     GET  {at.url}/v2/health/ready",
        *(_metrics_lines(listening)),
        f"token     {token_sources or path}; {token_holders} must show it",
        f"replicas  {serving.replicas} behind {at.proxy}",
        f"learns    branch {serving.branch} from topic {serving.instance.loaded.pipeline.topic}; {what_fills(serving)}",
        *([f"mirrors   versions to {uri}"] if (uri := serving.instance.loaded.pipeline.mlflow.uri) else []),
        *(f"listens   {listener}" for listener in listeners(os.getpid())),
        "stop      Ctrl-C",
    ):
        lines.say(line)


def _metrics_lines(listening: Listening) -> list[str]:
    if not listening.metrics_port:
        return []
    host = f"[{listening.metrics_host}]" if ":" in listening.metrics_host else listening.metrics_host
    return [f"metrics   GET  http://{host}:{listening.metrics_port}/metrics   (Prometheus; no token; /livez beside it)"]


def _end(serving: Serving) -> None:
    """Let the replicas record what they answered and the trainers mark their versions; then end Ray and all in it."""
    import ray

    if {name for _, name in _ray_processes()} == RAY_PARTS:
        _end_in_order(serving)
    ray.shutdown()


def _end_in_order(serving: Serving) -> None:
    import ray

    from millrace.services.serving import replica as predictor
    from millrace.services.serving.actors import make_trainers

    try:
        predictor.stop()
        *shards, (_, last) = make_trainers(serving.instance, serving.branch, serving.folder)
        ray.get([shard.stop.remote(MARK_S) for _, shard in shards], timeout=MARK_S + SLACK_S)
        state = ray.get(last.stop.remote(MARK_S), timeout=MARK_S + SLACK_S)
        log.info("the trainer ends at seq %d, %d records", state.seq, state.records)
    except (ray.exceptions.RayError, ray.serve.exceptions.RayServeException, TimeoutError, ValueError) as error:
        log.warning("The trainer did not end by itself (%s); its branch goes on from its newest mark.", type(error).__name__)
