"""The Serve application, and the one door to Ray Serve: replicas that answer, and the keeper that watches the trainer.

A replica decodes, predicts, encodes. It never learns. What it answers from is its ``Follower``'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ProxyStatus

from millrace.learners.errors import MillraceError
from millrace.services.endpoint.endpoint import Endpoint, Recording, features_name
from millrace.services.endpoint.grpc import Calls, GrpcApp, add_services
from millrace.services.endpoint.http import HttpApp
from millrace.services.endpoint.pool import Pool
from millrace.services.endpoint.recording import Recorded, Recorder
from millrace.services.endpoint.servers import Place, Servers, SharedPorts
from millrace.services.pipeline.instance import Instance
from millrace.services.protocol.access import Access
from millrace.services.serving.actors import TIMEOUT_S, Subscriber, current_name, make_current, make_trainers, trainer_state
from millrace.services.serving.ending import RECORD_S, SLACK_S, WORK_S
from millrace.services.serving.event_socket import send_events
from millrace.services.serving.events import TRACEBACK
from millrace.services.serving.follower import Follower
from millrace.services.serving.seats import is_draining, take_seat
from millrace.services.training.current import Presence
from millrace.services.training.trainer import TrainerStatus
from millrace.streams.branch.host import use_threads

log = logging.getLogger("millrace")
logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it speaks of ports that nobody listens on

APPLICATION = "millrace"
SLOW_S = 300.0  # for Serve's proxy to start, once Serve itself has given up waiting
KEEPER_POLL_S = 1.0  # between two polls of the keeper
FIRST_S = 5.0  # for a new replica to find something to answer from
POLL_S = 0.02  # between two polls whether it has
TELL_S = 2.0  # between two words of a replica about itself
REPLICA_CPUS = 0.1  # logical ones, for placement; BLAS uses one thread


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served, and where."""

    instance: Instance
    branch: str  # that the trainer learns
    host: str
    port: int  # of HTTP
    grpc_port: int
    replicas: int  # >= 2, so that one can die; of a language model >= 1
    access: Access
    folder: Path  # of the replicas' sockets, and where `up` says that it is about to end
    front: bool = True  # whether one stands before those sockets; else replicas share the ports
    proxies: bool = False  # whether Serve's own proxies take the requests in, so that replicas listen nowhere


class Predictor(Calls):
    """One replica. Ray Serve places, watches and restarts it; requests come to its own servers."""

    def __init__(self, serving: Serving, _keeper: Any) -> None:
        send_events(serving.folder, "replica", serving.branch)
        use_threads(1)
        self._serving = serving
        self._first_look_until_s = time.monotonic() + FIRST_S
        self._name = replica_name()
        self._subscriber = Subscriber(current_name(serving.instance))
        self._follower = Follower(serving.instance, self._subscriber)
        self._following = asyncio.get_running_loop().create_task(self._follower.run())  # Serve makes us on its loop
        pipeline = serving.instance.loaded.pipeline
        self._endpoint = Endpoint(
            pipeline.name,
            pipeline.schema,
            lambda: self._follower.held,
            serving.access,
            pipeline.serving,
            Pool(waiting_bytes=pipeline.serving.working_bytes),
            recording=_recording(serving.instance),
            overview=lambda: overview(serving, self._subscriber, self._presence()),
            draining=lambda: is_draining(serving.folder),
        )
        self._telling = asyncio.get_running_loop().create_task(announce(self._subscriber, self._presence))
        self.grpc_app = GrpcApp(self._endpoint)
        self._servers: Servers | None = None

    def __serve_build_asgi_app__(self) -> HttpApp:
        """What Serve's proxies call for every HTTP request; Serve asks for this after ``__init__``."""
        return HttpApp(self._endpoint)

    async def __del__(self) -> None:
        """Serve calls this before it ends a replica: nobody new comes in, what is at work is answered and recorded."""
        if self._servers is not None:
            await self._servers.close()
        if self._endpoint.recording is not None:
            await asyncio.to_thread(self._endpoint.recording.recorder.close, RECORD_S)

    def _presence(self) -> Presence:
        follower, recording = self._follower, self._endpoint.recording
        bundle = follower.held
        counts = Recorded() if recording is None else recording.recorder.counts
        traffic = self._endpoint.traffic
        return Presence(
            replica=self._name,
            pid=os.getpid(),
            serves=follower.described_target,
            answers="" if bundle is None else bundle.identity.name,
            staleness_ms=None if bundle is None else bundle.age_ms(time.time_ns() // 1_000_000),
            stored=counts.stored,
            waiting=counts.waiting,
            dropped=counts.dropped,
            rows=self._endpoint.statistics.rows,
            requests=tuple((*call, count) for call, count in traffic.requests.items()),
            latencies=tuple((protocol, tuple(took.counts), took.ns) for protocol, took in traffic.latencies.items()),
        )

    async def check_health(self) -> None:
        """The first look waits, for a while, until there is something to answer from; only then does the replica listen.

        Raises: MillraceError where following has ended or nobody can reach the replica; Serve then makes another one.
        """
        until_s, self._first_look_until_s = self._first_look_until_s, 0.0
        while self._follower.held is None and time.monotonic() < until_s and not self._following.done():
            await asyncio.sleep(POLL_S)
        if self._following.done():
            raise MillraceError(f"This replica no longer follows the ledger: {self._following.exception()!r}.")
        if self._servers is not None:
            self._servers.check()
        elif not self._serving.proxies:
            self._servers = Servers(self._endpoint, place_of(self._serving), WORK_S)
            await self._servers.open()
            log.info("It takes requests in.")


def replica_name() -> str:
    """Of the replica whose process this is; one that is started anew has another."""
    return str(serve.get_replica_context().replica_tag)


async def announce(subscriber: Subscriber, presence: Callable[[], Presence]) -> None:
    """Say every other second what a replica does, for whoever asks any of them."""
    while True:
        await subscriber.tell(presence())
        await asyncio.sleep(TELL_S)


async def overview(serving: Serving, subscriber: Subscriber, own: Presence) -> dict[str, Any]:
    """All replicas that were heard of lately, this one at least, and the trainer."""
    replicas, trainer = await asyncio.gather(subscriber.replicas(), trainer_state(serving.instance, serving.branch))
    shards = [shard for shard in serving.instance.shards(serving.branch) if shard != serving.branch]
    learning = await asyncio.gather(*(trainer_state(serving.instance, shard) for shard in shards))
    presences = {presence.replica: presence for presence in [own, *replicas]}
    return {
        "replicas": [asdict(replace(presence, series="")) for _, presence in sorted(presences.items())],
        "trainer": {"branch": serving.branch} | _describe_trainer(trainer),
        "shards": [{"branch": shard} | _describe_trainer(state) for shard, state in zip(shards, learning, strict=True)],
    }


def place_of(serving: Serving) -> Place:
    """Where one more replica listens. Raises: MillraceError where there is no room for it."""
    if not serving.front:
        return SharedPorts(serving.host, serving.port, serving.grpc_port)
    return take_seat(serving.folder, serving.replicas)


def _describe_trainer(state: TrainerStatus | None) -> dict[str, Any]:
    """What a trainer says of itself."""
    return {"running": False} if state is None else asdict(state)


def _recording(instance: Instance) -> Recording | None:
    pipeline = instance.loaded.pipeline
    if pipeline.labels is None:
        return None
    recorder = Recorder(instance.log, pipeline.served_topic, pipeline.serving, records=pipeline.serving.record != "off")
    before_reply = pipeline.serving.record == "before-reply"
    return Recording(recorder, features_name(pipeline.schema), before_reply, pipeline.log.max_bytes)


class Keeper:
    """Creates ``Current`` and the trainer, and again whenever they are gone."""

    def __init__(self, serving: Serving) -> None:
        send_events(serving.folder, "keeper", serving.branch)
        self._serving = serving
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        last_errors: dict[str, str] = {}
        while True:
            try:
                make_current(self._serving.instance, self._serving.folder)
                for branch, trainer in make_trainers(self._serving.instance, self._serving.branch, self._serving.folder):
                    last_errors[branch] = await self._look_at(branch, trainer, last_errors.get(branch, ""))
            except (ray.exceptions.RayError, ValueError) as error:
                log.warning("No trainer of branch %s could be made: %s", self._serving.branch, type(error).__name__)
            await asyncio.sleep(KEEPER_POLL_S)

    async def _look_at(self, branch: str, trainer: Any, last_error: str) -> str:
        """Say what has changed, and start a trainer again that failed; what it said last."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                state = await trainer.state.remote()
        except (ray.exceptions.RayError, TimeoutError) as error:
            log.warning("The trainer of branch %s does not answer: %s", branch, type(error).__name__)
            return last_error
        if last_error and not state.said:
            log.info("The trainer of branch %s goes on", branch)
        if not state.running and not state.said:  # it failed unforeseen; where it said why, an operator has to act
            ray.kill(trainer, no_restart=False)
        return str(state.said)

    def check_health(self) -> None:
        """Raises: MillraceError where keeping has ended; Serve then makes another keeper."""
        if self._keeping.done():
            raise MillraceError(f"The keeper no longer watches: {self._keeping.exception()!r}.")


def start(serving: Serving, kind: type[Any] | None = None) -> None:
    """Deploy replicas, predictors or of another ``kind``, on the Ray that this process has; returns when every one is up."""
    limits = serving.instance.loaded.pipeline.serving  # what a replica works on is bounded in bytes too
    deployment_options: dict[str, Any] = {"max_ongoing_requests": limits.in_flight, "health_check_period_s": 2}
    replica_options = deployment_options | {
        "num_replicas": serving.replicas,
        "max_queued_requests": limits.queued,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": WORK_S + RECORD_S + SLACK_S,
    }
    predictor: Any = serve.deployment(ray_actor_options={"num_cpus": REPLICA_CPUS}, **replica_options)(
        serve.ingress()(kind or Predictor)
    )
    keeper: Any = serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0}, **deployment_options)(Keeper)
    application = predictor.bind(serving, keeper.bind(serving))
    quiet: dict[str, Any] = {"logging_config": {"enable_access_log": False}}  # a line a request costs more than its answer
    if not serving.proxies:
        serve.start(proxy_location="Disabled", **quiet)
        _run(application)
        return
    calls = {"port": serving.grpc_port, "grpc_servicer_functions": [f"{add_services.__module__}.{add_services.__name__}"]}
    http = {"host": serving.host, "port": serving.port}
    _despite_a_slow_proxy(lambda: serve.start(http_options=http, grpc_options=calls, **quiet))
    _despite_a_slow_proxy(lambda: _run(application))


def _run(application: Any) -> None:
    """Raises: RuntimeError that says why, where a constructor raises; Serve itself says in which deployment alone."""
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        if (trace := _constructors_trace()) is None:
            raise
        failure = RuntimeError(f"A constructor of ours raises {trace.splitlines()[-1]}.")
        failure.__cause__ = error
    else:
        return
    log.error("What Serve says of it:%s%s", TRACEBACK, trace)
    raise failure


def _constructors_trace() -> str | None:
    """Of the deployment that could not be made, where there is one."""
    deployments = serve.status().applications[APPLICATION].deployments
    return next((deployment.message for deployment in deployments.values() if "\n" in deployment.message), None)


def stop() -> None:
    """Let the replicas answer and record what they have taken in, and end them."""
    serve.delete(APPLICATION)


def _despite_a_slow_proxy(call: Callable[[], object]) -> None:
    """Serve waits a minute for its proxy, whatever is set; on a busy machine we wait on.

    Raises: TimeoutError where none is there then either.
    """
    try:
        call()
    except TimeoutError:
        log.warning("Serve's proxy is slow to start; it is waited for.")
        until_s = time.monotonic() + SLOW_S
        while ProxyStatus.HEALTHY not in serve.status().proxies.values():
            if time.monotonic() > until_s:
                raise
            time.sleep(KEEPER_POLL_S)
