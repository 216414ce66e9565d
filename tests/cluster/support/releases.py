"""Releases of our chart on the cluster: a pipeline `spam` with late labels, whose every label is counted."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callers import Asked, Endpoint, GrpcEndpoint, Load
from one_node import Cluster, until

CHART = Path(__file__).resolve().parents[3] / "deploy" / "helm" / "millrace"
PIPELINE = "/etc/millrace/pipeline.toml"
ROWS = "".join(json.dumps({"links": links, "spam": links > 4}) + "\n" for links in range(10))
VALUES: dict[str, Any] = {
    "fullnameOverride": "spam",
    "pipeline": {
        "name": "spam",
        "fields": [{"name": "links"}],
        "label": {"name": "spam", "type": "boolean"},
        "learner": {"kind": "ridge", "gamma": 1e-3},
        "labels": {"horizon_ms": 3_600_000},
        # An answer is given only when it is in the log, so that no label of it can come to nothing by a kill.
        "serving": {"record": "before-reply"},
        "worker": {"version_rows": 200},
    },
    "image": {"repository": "localhost/millrace", "tag": "test", "pullPolicy": "Never"},
    "persistence": {"storageClass": "bare"},
    "resources": {"requests": {"cpu": "200m", "memory": "2Gi"}},
}


def ports(service: dict[str, Any]) -> dict[str, int]:
    """Of a Service, by their names."""
    return {port["name"]: port["port"] for port in service["ports"]}


def command_of(words: Sequence[str]) -> tuple[str, ...]:
    """The name of a command of ours, which has one word or two, without what follows it."""
    return tuple(words[: 2 if words[0] in ("alarms", "config", "replay", "dead-letters") else 1])


@dataclass
class Release:
    """One release in a namespace of its own, with as many labels as were accepted from us."""

    cluster: Cluster
    namespace: str
    folder: Path  # for files of values
    values: dict[str, Any] = field(default_factory=lambda: VALUES)
    accepted: int = 0

    def install(self, **changes: Any) -> None:
        """Install it, or upgrade it to these values, and wait until its pod is ready."""
        file = self.folder / "values.json"
        file.write_text(json.dumps(self.values | changes), encoding="utf-8")
        words = [
            "upgrade",
            "--install",
            "spam",
            str(CHART),
            "-n",
            self.namespace,
            "-f",
            str(file),
            "--wait",
            "--timeout",
            "10m",
        ]
        self.cluster.helm(*words)

    def helm(self, verb: str, *words: str) -> str:
        """What another verb of helm prints."""
        return self.cluster.helm(verb, "spam", "-n", self.namespace, *words)

    def got(self, *words: str) -> dict[str, Any]:
        """An object of the namespace."""
        return self.cluster.got("-n", self.namespace, *words)

    def pod(self) -> dict[str, Any]:
        """The one pod."""
        return self.got("pod", "spam-0")

    def container(self) -> dict[str, Any]:
        """What Kubernetes says of its container."""
        return self.pod()["status"]["containerStatuses"][0]

    def ready(self) -> bool:
        """Whether Services lead to the pod."""
        states = self.pod()["status"].get("conditions", [])
        return any(state["type"] == "Ready" and state["status"] == "True" for state in states)

    def is_reached(self) -> bool:
        """Whether the Service leads to the pod: the node's rules come a little after the pod is ready."""
        try:
            return self.endpoint().call("/readyz", None)[0] == 200
        except OSError:
            return False

    def exec(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command in the pod, whatever its exit code."""
        flags = ["-i"] if stdin is not None else []
        return self.cluster.ran("-n", self.namespace, "exec", *flags, "spam-0", "-c", "millrace", "--", *words, stdin=stdin)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of ours on the pipeline, as an operator types it: `replay plan` takes the file after both words."""
        verbs = command_of(words)
        return self.exec("millrace", *verbs, PIPELINE, *words[len(verbs) :])

    def send(self, rows: str, *options: str) -> None:
        """Append rows, which are JSON lines, to the log from within the pod."""
        assert self.exec("sh", "-c", "cat > /tmp/rows.jsonl", stdin=rows).returncode == 0
        done = self.command("send", "/tmp/rows.jsonl", *options)
        assert done.returncode == 0, done.stderr

    def status(self) -> dict[str, Any]:
        """`millrace status`; empty where it could not be had."""
        done = self.command("status", "--output", "json")
        lines = [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []
        return {line["what"]: line["value"] for line in lines}

    def endpoint(self) -> Endpoint:
        """The Service, with a token of the Secret that the chart made."""
        service = self.got("service", "spam")["spec"]
        return Endpoint(service["clusterIP"], ports(service)["http"], self.token())

    def endpoints(self) -> list[Asked]:
        """The same over both protocols."""
        service = self.got("service", "spam")["spec"]
        return [self.endpoint(), GrpcEndpoint(service["clusterIP"], ports(service)["grpc"], self.token())]

    def token(self) -> str:
        """That of the Secret."""
        return base64.b64decode(self.got("secret", "spam-tokens")["data"]["tokens"]).decode().split()[1]

    def noted(self) -> list[str]:
        """The commands of its notes, as they are printed."""
        return re.findall(r"^  (\S.*)$", self.cluster.helm("get", "notes", "spam", "-n", self.namespace), re.MULTILINE)

    def restarts(self) -> int:
        """How often its container was started again."""
        return int(self.container()["restartCount"])

    def begin(self) -> None:
        """Teach it ten rows, so that it can answer."""
        self.send(ROWS)
        endpoint = self.endpoint()
        until(lambda: endpoint.ask("first", 1.0)[0] == 200, "the first answer")

    def told(self, name: str) -> None:
        """Ask under an id, and label what was answered."""
        endpoint = self.endpoint()
        until(lambda: endpoint.ask(name, 7.0)[0] == 200, "an answer")
        assert endpoint.label(name, True)[0] == 202
        self.accepted += 1

    def everything_once(self) -> None:
        """Each accepted label was learned, none twice, and a fold from the log proves every version."""
        wanted = {"labels_joined": self.accepted, "learned": self.accepted + len(ROWS.splitlines()), "rejected": 0}
        seen: dict[str, Any] = {}

        def enough() -> bool:
            seen.update(self.status())
            return all(seen.get(name, -1) >= least for name, least in wanted.items())

        until(enough, (wanted, seen))
        assert {name: seen[name] for name in wanted} == wanted, seen
        done = self.command("verify")
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def loaded(self, prefix: str) -> Iterator[Load]:
        """Asked 50 times a second, from fifty labels before to fifty labels after; then each label was learned once."""
        with Load(self.endpoints(), prefix) as load:
            until(lambda: len(load.accepted) > 50, "fifty labels before")
            begun = time.monotonic()
            yield load
            until(self.ready, "ready again")
            spent, count = time.monotonic() - begun, len(load.accepted)
            until(lambda: len(load.accepted) > count + 50, "fifty labels after")
        self.accepted += len(load.accepted)
        rate = sum(load.statuses.values()) / load.lasted_s
        print(f"{prefix}: {dict(load.statuses)}, {rate:.0f}/s")
        print(f"{prefix}: ready after {spent:.1f} s, no connection for {load.refused_s():.1f} s")
        self.everything_once()

    def described(self) -> str:
        """What Kubernetes tells of the pod, for whoever reads a failure."""
        return self.cluster.ran("-n", self.namespace, "describe", "pod", "spam-0").stdout[-3000:]

    def process_1(self) -> int:
        """The machine's number of the container's process 1."""
        return self.cluster.process_of(self.container()["containerID"].removeprefix("containerd://"))


@contextmanager
def installed(cluster: Cluster, namespace: str, folder: Path, values: dict[str, Any] = VALUES) -> Iterator[Release]:
    """A release that is installed and ready, in a namespace of its own, and has learned nothing yet."""
    cluster.volume(namespace, 10001)
    release = Release(cluster, namespace, folder, values)
    begun = time.monotonic()
    release.install()
    print(f"installed and ready after {time.monotonic() - begun:.1f} s")
    yield release
    cluster.forget(namespace)
