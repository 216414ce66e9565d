"""What a served pipeline says of itself, asked over HTTP: for `millrace status`, which imports no Ray.

`millrace up` leaves its address in the pipeline's folder while it runs; it counts while ``up`` holds its lock (lock.py).
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from millrace.services.config.config import endpoint_token
from millrace.services.pipeline.instance import Instance
from millrace.services.serving.lock import held_alone, is_held
from millrace.streams.errors import StorageError

if TYPE_CHECKING:
    from millrace.services.serving.replica import Serving

TIMEOUT_S = 15.0  # for an answer; a replica waits for the trainer's meanwhile


class EndpointAddress(msgspec.Struct, frozen=True):
    """Where an endpoint listens, and since when by which process."""

    url: str
    grpc: str  # HOST:PORT
    proxy: str  # in words
    pid: int


@contextmanager
def placed(instance: Instance, place: EndpointAddress) -> Iterator[None]:
    """Others on this machine find the endpoint for as long as the block runs."""
    path = _path(instance)
    new_path = path.with_suffix(".new")
    try:
        new_path.write_bytes(msgspec.json.encode(place))
        new_path.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: where the endpoint listens cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        if published_place(instance) == place:
            path.unlink(missing_ok=True)


def place(host: str, port: int, grpc_port: int, proxy: str) -> EndpointAddress:
    """Of an endpoint of this process; one that listens everywhere is asked by loopback."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    name = f"[{name}]" if ":" in name else name
    return EndpointAddress(f"http://{name}:{port}", f"{name}:{grpc_port}", proxy, os.getpid())


def published_place(instance: Instance) -> EndpointAddress | None:
    """Where the pipeline's endpoint listens; None unless a process serves the pipeline."""
    return _written_place(instance) if is_held(instance.folder) else None


@contextmanager
def serving_alone(instance: Instance) -> Iterator[None]:
    """Only this process serves the pipeline for as long as the block runs; what a killed one wrote is gone then.

    Raises: BusyError where another one does, StorageError where there can be no lock.
    """
    written = _written_place(instance)
    with held_alone(instance.folder, "Another `millrace up`" if written is None else written.url):
        _path(instance).unlink(missing_ok=True)
        yield


def _written_place(instance: Instance) -> EndpointAddress | None:
    """What the last endpoint wrote; it may have been killed since. Nothing where that cannot be read: the lock says why."""
    try:
        return msgspec.json.decode(_path(instance).read_bytes(), type=EndpointAddress)
    except (OSError, msgspec.DecodeError):  # the latter: the machine ended while it was written
        return None


def overview(instance: Instance, place: EndpointAddress, token: str | None = None) -> dict[str, Any]:
    """What trainer and replicas say of themselves; ``token``: to show, else the environment's or the instance's own.

    Raises: OSError, msgspec.DecodeError where nobody answers, or not as we do.
    """
    overview_facts: dict[str, Any] = _get_json(
        instance, f"{place.url}/v2/models/{instance.loaded.pipeline.name}/status", token or endpoint_token()
    )
    return overview_facts


def served(instance: Instance) -> dict[str, Any]:
    """Trainer and replicas, a line each; or why they cannot be asked."""
    place = published_place(instance)
    if place is None:
        return {"endpoint": "not up on this machine"}
    try:
        facts_served = overview(instance, place)
    except (OSError, msgspec.DecodeError) as error:  # urllib's errors are among them
        return {"endpoint": f"{place.url} of process {place.pid} does not say how it is: {error}"}
    facts = {"endpoint": f"{place.url}, {place.proxy}", "trainer": _trainer_line(facts_served["trainer"])}
    return facts | {f"replica_{at}": _replica_line(replica) for at, replica in enumerate(facts_served["replicas"], 1)}


def ways_to_ask(serving: Serving, at: EndpointAddress) -> list[str]:
    """Where callers ask, and where they say what was right, a line each."""
    pipeline = serving.instance.loaded.pipeline
    if pipeline.llm is not None:
        return [
            f"openai    POST {at.url}/v1/chat/completions   (model {pipeline.name}; and /v1/completions, /v1/responses)",
            f"          gRPC {at.grpc} grpc.health.v1   (health alone)",
        ]
    labels = [
        f"labels    POST {at.url}/v2/models/{pipeline.name}/labels   (by row id, into topic {pipeline.served_topic})",
        f"          gRPC {at.grpc} millrace.v1.Labels",
    ]
    return [
        f"predict   POST {at.url}/v2/models/{pipeline.name}/infer   (Open Inference Protocol v2, JSON or binary tensors)",
        f"          gRPC {at.grpc} inference.GRPCInferenceService   (the same, and grpc.health.v1)",
        *(labels if pipeline.labels is not None else []),
    ]


def what_fills(serving: Serving) -> str:
    """Who appends to the topic that is learned from."""
    llm = serving.instance.loaded.pipeline.llm
    if llm is None:
        return "`millrace send` appends rows"
    whose = llm.capture if isinstance(llm.capture, str) else ", ".join(llm.capture)
    return f"completions of {whose} go there (llm.capture)"


def _path(instance: Instance) -> Path:
    return instance.folder / "endpoint.json"


def _get_json(instance: Instance, url: str, token: str | None) -> Any:
    token_file = instance.folder / "token"
    token = token or (token_file.read_text(encoding="utf-8").strip() if token_file.exists() else "")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return msgspec.json.decode(response.read())


def _trainer_line(state: dict[str, Any]) -> str:
    if not state["running"]:
        return f"branch {state['branch']}: not running{state.get('said') and ': ' + state['said'] or ''}"
    troubled = f", waiting: {state['said']}" if state["said"] else ""
    return f"branch {state['branch']}, epoch {state['epoch']}, seq {state['seq']}, {state['records']} records{troubled}"


def _replica_line(state: dict[str, Any]) -> str:
    behind = "" if state["staleness_ms"] is None else f", stale by at most {state['staleness_ms']} ms"
    completions = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in state["completions"] if count)
    return (
        f"{state['answers'] or 'nothing yet'}{behind}; told to serve {state['serves']}; process {state['pid']}; "
        f"records of answers: {state['stored']} in the log, {state['waiting']} waiting, {state['dropped']} dropped"
        f"{completions and f'; completions: {completions}'}{state['said'] and '; ' + state['said']}"
    )
