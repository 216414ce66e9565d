"""Callers of a pipeline `spam` through its Service: each answer is labelled, and what became of every request is kept."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

ANSWER_S = 30.0
PAUSE_S = 0.08  # of one caller between two questions; four of them, with a label each, make some 50 requests a second
CALLERS = 4


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


@dataclass
class Load:
    """Callers in threads of their own, from ``with`` to its end."""

    endpoint: Endpoint
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
        turn = 0
        while not self.ended.wait(PAUSE_S):
            turn += 1
            name = f"{self.prefix}-{number}-{turn}"
            if self.counted("asked", lambda name=name, turn=turn: self.endpoint.ask(name, turn % 10)) == 200:
                self.told(name, turn % 10 > 4)

    def told(self, name: str, label: bool) -> None:
        """Label until it is accepted, as a client has to: it does not know whether a broken call was heard."""
        while self.counted("labelled", lambda: self.endpoint.label(name, label)) != 202:
            time.sleep(PAUSE_S)
        self.accepted.add(name)

    def counted(self, what: str, call: object) -> int:
        """The status of a call, 0 where there was none; refused and cut connections are told apart."""
        try:
            status, answer = call()  # type: ignore[operator]
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
