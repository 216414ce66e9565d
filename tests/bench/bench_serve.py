"""Requests a second and their latency at 1 and 32 connections, over HTTP and gRPC, with the same caller for everyone.

make bench-serve. One row of 100 numbers to 10 scores and a label: `millrace up` with two replicas behind our front, against
bare FastAPI, bare grpc.aio and MLServer, each with the same linear model and one process. Then under attack, with labels, on
shared ports, and behind Serve's proxies. Everybody is up at the same time and is asked in turn. JSON numbers over HTTP, raw
tensors over gRPC, as clients send them. With ``--log kafka`` only the same pipeline with its log on a Kafka broker of its own
is asked, beside itself on SQLite.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from attacks import SENT, attack
from idle import idle
from labels_load import TABLES, label_lines
from pipelines import clean_environment, millrace
from results import compared, machine, say
from served_pipeline import NO_FRONT, PROXIES, Up, free_port, is_ready, served, until

from millrace.services.demo.broker import JARS, tables
from millrace.services.demo.broker import running as running_broker

HERE = Path(__file__).resolve().parent
PEERS = HERE.parents[1] / ".venv-peers" / "bin" / "python"
D, CLASSES, ROWS = 100, 10, 2000
CONNECTIONS = [1, 32]
PATHS = {"http": "/v2/models/digits/infer", "grpc": "/inference.GRPCInferenceService/ModelInfer"}
P99 = ("bare", 32), 0.667  # where the 99th percentile is compared, and its goal: at most 1.5 times the peer's
GOALS = {("bare", 1): 0.7, ("bare", 32): 1.0, ("MLServer", 1): 2.0, ("MLServer", 32): 2.0}
UNDER_ATTACK = 0.667  # of the requests/s without: at most 1.5 times slower
LABELS = "/v2/models/digits/labels"
OTHER_WAYS = {"ports shared by SO_REUSEPORT": NO_FRONT, "Serve's own proxy": PROXIES}

PIPELINE = """name = "digits"
label = {{ name = "y", type = "integer" }}
learner = {{ kind = "ridge" }}
fields = [{{ name = "x", size = {d} }}]
"""

Ports = dict[str, dict[str, int]]  # by way, then by who


@contextmanager
def running(*command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, ended with the block."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def learned(folder: Path, tables: str = "", d: int = D) -> None:
    """A linear model of ``d`` numbers and 10 classes; ``tables``: what else the pipeline file says."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, d)).round(6)
    y = (x @ rng.normal(size=(d, CLASSES))).argmax(axis=1)
    (folder / "digits.toml").write_text(PIPELINE.format(d=d) + tables, encoding="utf-8")
    rows = (json.dumps({"x": a, "y": b}) for a, b in zip(x.tolist(), y.tolist(), strict=True))
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        done = millrace(*words, cwd=folder)
        assert done.returncode == 0, done.stderr


def requests(folder: Path) -> dict[str, Path]:
    """The bytes of a request, by way."""
    files = {"http": http_request(folder), "grpc": folder / "request.grpc"}
    made = subprocess.run([PEERS, HERE / "bare_grpc.py", "request"], capture_output=True, check=True)
    files["grpc"].write_bytes(made.stdout)
    return files


def http_request(folder: Path, d: int = D) -> Path:
    """The bytes of a request over HTTP."""
    x, file = np.linspace(-1, 1, d).round(6).tolist(), folder / "request.http"
    tensor = {"name": "x", "datatype": "FP64", "shape": [1, d], "data": x}
    file.write_text(json.dumps({"inputs": [tensor]}), encoding="utf-8")
    return file


def start_peers(stack: ExitStack) -> Ports:
    """Everybody else, ready."""
    http, mlserver, grpc, echo = (free_port() for _ in range(4))
    mlserver_grpc, metrics = free_port(), free_port()
    stack.enter_context(running(sys.executable, HERE / "bare_http.py", http))
    stack.enter_context(running(sys.executable, HERE / "bare_http.py", echo, "echo"))
    stack.enter_context(running(PEERS, HERE / "bare_grpc.py", grpc))
    stack.enter_context(running(PEERS, HERE / "peer_mlserver.py", mlserver, mlserver_grpc, metrics))
    until(lambda: is_ready(mlserver))
    by_way = {"http": {"bare FastAPI": http, "MLServer": mlserver}, "grpc": {"bare grpc.aio": grpc, "MLServer": mlserver_grpc}}
    return by_way | {"ceiling": {"echo": echo}}


def called(way: str, port: int, request: Path, connections: int, seconds: float, path: str = "") -> dict[str, float]:
    """What the callers saw."""
    words = [way, port, path or PATHS[way], request, connections, seconds]
    command = [sys.executable, HERE / "caller.py", *words]
    done = subprocess.run(list(map(str, command)), env=clean_environment(), capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["failed"] == 0, result
    return result


def median(results: Sequence[dict[str, float]], what: str) -> float:
    """Over the rounds."""
    return float(f"{np.median([result[what] for result in results]):.4g}")


def case(way: str, connections: int, rounds: list[dict[str, dict[str, float]]]) -> Iterator[dict[str, object]]:
    """One line a peer: requests a second, and both latencies beside them."""
    ours = [rates["ours"] for rates in rounds]
    for who in rounds[0].keys() - {"ours"}:
        theirs = [rates[who] for rates in rounds]
        pairs = [(a["rate"], b["rate"]) for a, b in zip(ours, theirs, strict=True)]
        goal = GOALS.get((who.split()[0], connections))
        line = compared("serve", f"{way}, {connections} connections, vs {who}", "requests/s", pairs, (who, goal))
        for quantile in ("p50_ms", "p99_ms"):
            line |= {f"ours_{quantile}": median(ours, quantile), f"peer_{quantile}": median(theirs, quantile)}
        yield line
        if (who.split()[0], connections) == P99[0]:
            pairs = [(a["p99_ms"], b["p99_ms"]) for a, b in zip(ours, theirs, strict=True)]
            yield compared("serve", f"{way}, {connections} connections, p99, vs {who}", "ms", pairs, (who, P99[1]))


def measured(ports: dict[str, int], way: str, request: Path, plan: tuple[int, float]) -> Iterator[dict[str, object]]:
    """Everybody in turn, round after round."""
    rounds, seconds = plan
    for connections in CONNECTIONS:
        turns = [{who: called(way, port, request, connections, seconds) for who, port in ports.items()} for _ in range(rounds)]
        yield from case(way, connections, turns)


def ceiling(port: int, request: Path, seconds: float) -> Iterator[dict[str, object]]:
    """How fast the callers are by themselves."""
    for connections in CONNECTIONS:
        seen = called("http", port, request, connections, seconds)
        told = {"unit": "requests/s", "ours": round(seen["rate"]), "peer": None, "peer_name": None, "ratio": None, "goal": None}
        yield {"bench": "serve", "case": f"callers alone, {connections} connections"} | told


def under_attack(up: Up, request: dict[str, Path], plan: tuple[int, float]) -> Iterator[dict[str, object]]:
    """Honest callers while each listener is attacked in each way, beside the same a moment before."""
    rounds, seconds = plan
    for way, port in (("http", up.port), ("grpc", up.grpc_port)):
        for kind in SENT[way]:
            pairs = list[tuple[float, float]]()
            for _ in range(rounds):
                before = called(way, port, request[way], 32, seconds)
                with attack(port, way, kind):
                    pairs.append((called(way, port, request[way], 32, seconds)["rate"], before["rate"]))
            name = f"{way}, 32 connections, under attack: 4,300 connections that send {kind}"
            yield compared("serve", name, "requests/s", pairs, ("ours without", UNDER_ATTACK))


def labels(folder: Path, plan: tuple[int, float]) -> Iterator[dict[str, object]]:
    """Of a pipeline that takes them late."""
    learned(folder, TABLES)
    with served(folder) as up:
        yield from label_lines(folder, lambda request, *load: called("http", up.port, request, *load, LABELS), *plan)


def ours_too(up: Up, others: Ports) -> Ports:
    """Everybody's ports, by way."""
    return {way: {"ours": port, **others[way]} for way, port in (("http", up.port), ("grpc", up.grpc_port))}


def results(folder: Path, rounds: int, seconds: float) -> Iterator[dict[str, object]]:
    """Every case."""
    learned(folder)
    request = requests(folder)
    with ExitStack() as stack:
        peers = start_peers(stack)
        yield from ceiling(peers["ceiling"]["echo"], request["http"], seconds)
        up = stack.enter_context(served(folder))
        yield from idle(up)
        for way, ports in ours_too(up, peers).items():
            yield from measured(ports, way, request[way], (rounds, seconds))
        yield from under_attack(up, request, (max(2, rounds - 2), seconds))
    yield from labels(folder / "labels", (rounds, seconds))
    for way_in, words in OTHER_WAYS.items():
        with served(folder, millrace=words) as up, ExitStack() as stack:
            peers = start_peers(stack)
            for way, ports in ours_too(up, peers).items():
                bare = {who: port for who, port in ports.items() if who != "MLServer"}
                for line in measured(bare, way, request[way], (max(2, rounds - 1), seconds)):
                    yield line | {"case": f"{line['case']}, {way_in}", "goal": None}


def on_kafka(folder: Path, jars: Path, plan: tuple[int, float]) -> Iterator[dict[str, object]]:
    """Ours on Kafka beside ours on SQLite."""
    with running_broker(folder / "broker", jars) as broker:
        yield from side_by_side(folder, {"ours": tables(broker), "on SQLite": ""}, "on Kafka", plan)


def with_memory(folder: Path, plan: tuple[int, float]) -> Iterator[dict[str, object]]:
    """Ours with an error memory beside ours without: of narrow rows and of wide ones."""
    for d in (16, D):
        place = folder / str(d)
        place.mkdir()
        for line in side_by_side(place, {"ours": "\n[memory]\n", "without": ""}, f"with an error memory, d = {d}", plan, d):
            yield line | {"goal": 0.9}


def side_by_side(
    folder: Path, texts: dict[str, str], word: str, plan: tuple[int, float], d: int = D
) -> Iterator[dict[str, object]]:
    """Two pipelines of ours that differ in the end of their file, over HTTP."""
    with ExitStack() as stack:
        ports = dict[str, int]()
        for who, text in texts.items():
            learned(folder / who.split()[-1], text, d)
            ports[who] = stack.enter_context(served(folder / who.split()[-1])).port
        for line in measured(ports, "http", http_request(folder, d), plan):
            yield line | {"case": str(line["case"]).replace(", vs", f", {word}, vs")}


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement, after its warm-up")
    parser.add_argument("--log", choices=("sqlite", "kafka"), default="sqlite", help="kafka: ours there beside ours on SQLite")
    parser.add_argument("--memory", action="store_true", help="ours with an error memory beside ours without")
    parser.add_argument("--jars", type=Path, default=Path(JARS))
    arguments = parser.parse_args()
    say(machine("serve"))
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        plan = arguments.rounds, arguments.seconds
        if arguments.memory:
            lines = with_memory(Path(folder), plan)
        elif arguments.log == "kafka":
            lines = on_kafka(Path(folder), arguments.jars, plan)
        else:
            lines = results(Path(folder), *plan)
        for line in lines:
            say(line)
    print(f"{time.monotonic() - start_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
