"""Callers of a pipeline `spam` through its Service, over both protocols: answers are labelled; what became of each is kept."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from millrace.services.endpoint.grpc import Client
from millrace.services.errors import NotReadyError
from millrace.services.protocol import inference_pb2, labels_pb2

ANSWER_S = 30.0
PAUSE_S = 0.08  # of one caller between two questions; four of them, with a label each, make some 50 requests a second
CALLERS = 4


class Asked(Protocol):
    """Whoever is asked, and told what was right; statuses are those of HTTP.

    Both raise ConnectionRefusedError where no connection was taken, and OSError or HTTPException where one was cut.
    """

    def ask(self, name: str, links: float) -> tuple[int, dict]:
        """The answer to a row under an id."""

    def label(self, name: str, label: bool) -> tuple[int, dict]:
        """Tell what was right."""


@dataclass(frozen=True)
class Endpoint:
    """Where a release answers, and the token that it asks for."""

    address: str
    port: int
    token: str

    def call(self, path: str, body: object | None) -> tuple[int, dict]:
        """Status and body of one request on a connection of its own; ConnectionRefusedError where none was taken."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=ANSWER_S)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise ConnectionRefusedError(str(error)) from error
            headers = {"Authorization": f"Bearer {self.token}"}
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text.startswith((b"{", b"[")) else {"text": text.decode(errors="replace")}
        finally:
            connection.close()

    def ask(self, name: str, links: float) -> tuple[int, dict]:
        """The answer to a row under an id."""
        row = [{"name": "links", "datatype": "FP64", "shape": [1], "data": [links]}]
        row += [{"name": "id", "datatype": "BYTES", "shape": [1], "data": [name]}]
        return self.call("/v2/models/spam/infer", {"inputs": row})

    def label(self, name: str, label: bool) -> tuple[int, dict]:
        """Tell what was right."""
        return self.call("/v2/models/spam/labels", {"id": name, "label": label})


@dataclass(frozen=True)
class GrpcEndpoint:
    """The same over gRPC."""

    address: str
    port: int
    token: str

    def call(self, ask: Callable[[Client], Any]) -> Any:
        """The answer to one call on a connection of its own. One that could not be made was never heard, says gRPC."""
        own = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"{self.address}:{self.port}", options=own) as channel:
            try:
                return ask(Client(channel, (("authorization", f"Bearer {self.token}"),)))
            except NotReadyError as error:
                kind = ConnectionRefusedError if "failed to connect to all addresses" in str(error) else ConnectionError
                raise kind(str(error)) from error

    def ask(self, name: str, links: float) -> tuple[int, dict]:
        """The answer to a row under an id."""
        request = inference_pb2.ModelInferRequest(model_name="spam")
        request.inputs.add(name="links", datatype="FP64", shape=[1]).contents.fp64_contents.append(links)
        request.inputs.add(name="id", datatype="BYTES", shape=[1]).contents.bytes_contents.append(name.encode())
        response = self.call(lambda client: client.infer(request, ANSWER_S))
        return 200, {"model_version": response.model_version}

    def label(self, name: str, label: bool) -> tuple[int, dict]:
        """Tell what was right."""
        request = labels_pb2.LabelRequest()
        request.labels.add(id=name, flag=label)
        response = self.call(lambda client: client.label(request, ANSWER_S))
        return 202, {"offsets": list(response.offsets)}


@dataclass
class Load:
    """Callers in threads of their own, from ``with`` to its end."""

    endpoints: Sequence[Asked]  # callers take turns at them
    prefix: str
    statuses: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    cut: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    refused_at: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    begun: float = 0.0
    lasted_s: float = 0.0

    def __enter__(self) -> Load:
        self.begun = time.monotonic()
        self.threads += [threading.Thread(target=self.go_on, args=(number,), daemon=True) for number in range(CALLERS)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()
        self.lasted_s = time.monotonic() - self.begun

    def go_on(self, number: int) -> None:
        """Ask, and label what was answered, until the end."""
        turn, endpoint = 0, self.endpoints[number % len(self.endpoints)]
        while not self.ended.wait(PAUSE_S):
            turn += 1
            name = f"{self.prefix}-{number}-{turn}"
            if self.counted(endpoint, "asked", lambda name=name, turn=turn: endpoint.ask(name, turn % 10)) == 200:
                self.told(endpoint, name, turn % 10 > 4)

    def told(self, endpoint: Asked, name: str, label: bool) -> None:
        """Label until it is accepted, as a client has to: it does not know whether a broken call was heard."""
        while self.counted(endpoint, "labelled", lambda: endpoint.label(name, label)) != 202:
            time.sleep(PAUSE_S)
        self.accepted.add(name)

    def counted(self, endpoint: Asked, what: str, call: Callable[[], tuple[int, dict]]) -> int:
        """The status of a call, 0 where there was none; refused and cut connections are told apart."""
        what = f"{type(endpoint).__name__} {what}"
        try:
            status, answer = call()
            if status not in (200, 202):
                self.odd.append(f"{what}: {status} {answer}")
        except ConnectionRefusedError:
            self.refused_at.append(time.monotonic())
            status = 0
        except (OSError, http.client.HTTPException) as error:
            self.cut.append(f"{what}: {error!r}")
            status = 0
        self.statuses[f"{what} {status}"] += 1
        return status

    def refused_s(self) -> float:
        """Seconds from the first refused connection to the last."""
        return max(self.refused_at) - min(self.refused_at) if self.refused_at else 0.0
