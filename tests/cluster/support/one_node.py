"""A real Kubernetes of one node, made by tests/cluster/cluster.sh, and the traces that it must not leave."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "cluster.sh"
WAIT_S = 300.0  # a machine may be busy with other tests
COMMAND_S = 600.0


def ran(words: list[str], env: dict[str, str] | None = None, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command that has ended, whatever its exit code."""
    return subprocess.run(words, env=env, input=stdin, capture_output=True, text=True, timeout=COMMAND_S, check=False)


def output(words: list[str], env: dict[str, str] | None = None, stdin: str | None = None) -> str:
    """What a command printed that has to succeed."""
    done = ran(words, env, stdin)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def until(condition: Callable[[], object], what: object) -> None:
    """Wait for a condition; say which one never came."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.25)


def of_the_cluster(process: Path, folder: Path) -> bool:
    """Whether a process belongs to the cluster: one of its daemons, a container's keeper, or in a pod."""
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace")
        group = (process / "cgroup").read_text(encoding="utf-8")
    except OSError:
        return False
    return f"{folder}/" in words.replace("\0", " ") and "cluster.sh" not in words or "/kubepods" in group


def traces(folder: Path) -> set[str]:
    """What a machine has of a cluster's kind: processes, mounts, interfaces, chains and rules of the packet filter, groups."""
    saved = [line for tool in ("iptables-save", "ip6tables-save") for line in ran([tool]).stdout.splitlines()]
    rules = {line for line in saved if line.startswith("-A") or re.match(r":\S+ - ", line)}
    rules = {re.sub(r" \[\d+:\d+\]$", "", line) for line in rules}
    processes = {str(path) for path in Path("/proc").iterdir() if path.name.isdigit() and of_the_cluster(path, folder)}
    mounts = {f"mount {line}" for line in output(["findmnt", "-rno", "TARGET"]).splitlines() if "buildah" not in line}
    interfaces = {str(path) for path in Path("/sys/class/net").iterdir()}
    groups = {str(path) for path in Path("/sys/fs/cgroup").glob("*/kubepods*")}
    return rules | processes | mounts | interfaces | groups


@dataclass(frozen=True)
class Cluster:
    """A cluster that is built in a folder; up between ``up`` and ``down``."""

    folder: Path
    helm_binary: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment in which kubectl and helm find it."""
        return os.environ | {"KUBECONFIG": str(self.folder / "kubeconfig"), "HELM_CACHE_HOME": str(self.folder / "helm")}

    def script(self, verb: str, *words: str) -> None:
        """Run cluster.sh, which prints only why it failed."""
        output([str(SCRIPT), verb, str(self.folder), *words])

    def ran(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A kubectl command that may fail."""
        return ran([str(self.folder / "bin" / "kubectl"), *words], self.env, stdin)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """What a kubectl command printed."""
        return output([str(self.folder / "bin" / "kubectl"), *words], self.env, stdin)

    def helm(self, *words: str) -> str:
        """What a helm command printed."""
        return output([str(self.helm_binary), *words], self.env)

    def apply(self, *objects: dict) -> None:
        """Make objects, or bring them to what is said."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def got(self, *words: str) -> dict:
        """An object, or a list of them."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def address(self) -> str:
        """Of the machine, as pods find it."""
        addresses = self.got("node", "n1")["status"]["addresses"]
        return next(entry["address"] for entry in addresses if entry["type"] == "InternalIP")

    def volume(self, name: str, uid: int) -> None:
        """A volume of the storage class `bare`: an empty folder of the machine that belongs to a user."""
        path = self.folder / "volumes" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        os.chown(path, uid, uid)
        path.chmod(0o770)
        spec = {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "bare",
            "hostPath": {"path": str(path), "type": "Directory"},
        }
        self.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})

    def namespace(self, name: str) -> None:
        """A namespace that takes only what Pod Security calls `restricted`."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        # The controller makes it a little later, and a pod without is refused.
        until(lambda: self.ran("-n", name, "get", "serviceaccount", "default").returncode == 0, "a service account")

    def secrets(self, namespace: str) -> set[str]:
        """Every word of eight letters or more that the Secrets of a namespace have, but for Helm's own."""
        own = [item for item in self.got("-n", namespace, "secrets")["items"] if not item["type"].startswith("helm.sh/")]
        texts = [base64.b64decode(value).decode() for item in own for value in item.get("data", {}).values()]
        return {word for text in texts for word in text.split() if len(word) >= 8 and word != "predict,label"}

    def logs(self, namespace: str) -> dict[str, str]:
        """What each container of a namespace says, and what it said before it was started again. One that is none fails."""
        told = {}
        for pod in self.got("-n", namespace, "pods")["items"]:
            name, states = pod["metadata"]["name"], pod["status"]
            for state in [*states.get("initContainerStatuses", []), *states["containerStatuses"]]:
                words = ("-n", namespace, "logs", name, "-c", state["name"])
                told[f"log {name} {state['name']}"] = self.kubectl(*words)
                if "terminated" in state["lastState"]:
                    told[f"log before {name} {state['name']}"] = self.kubectl(*words, "--previous")
        return told

    def told_secrets(self, namespace: str) -> list[str]:
        """Where in logs, events and objects of a namespace one of its secrets stands."""
        secrets = self.secrets(namespace)
        kinds = "events,configmaps,pods,statefulsets,jobs,cronjobs,services"
        items = self.got("-n", namespace, kinds)["items"]
        told = {f"{item['kind']} {item['metadata']['name']}": json.dumps(item) for item in items} | self.logs(namespace)
        return sorted(place for place, text in told.items() if any(secret in text for secret in secrets))

    def forget(self, namespace: str) -> None:
        """Take a namespace away with all in it, without the patience that its pods ask for. None of its secrets was told."""
        assert self.told_secrets(namespace) == []
        self.kubectl("-n", namespace, "delete", "statefulset,job", "--all", "--cascade=orphan")
        self.kubectl("-n", namespace, "delete", "pod", "--all", "--grace-period=1")
        self.kubectl("delete", "namespace", namespace, "--wait")

    def process_of(self, container: str) -> int:
        """The machine's number of a container's process 1."""
        tasks = output(["ctr", "-a", str(self.folder / "cd.sock"), "-n", "k8s.io", "tasks", "ls"])
        return next(int(line.split()[1]) for line in tasks.splitlines() if line.startswith(container))
