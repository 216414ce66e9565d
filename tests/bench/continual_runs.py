"""One run of bench-continual: what is asked for, the learner taught row by row and looked at as it goes on, its figures."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from continual_streams import SplitStream, cifar_features, stream_named

from millrace.learners.evaluation import continual as metrics
from millrace.learners.protocol import Batch, Floats, Learner
from millrace.learners.table import LEARNERS
from millrace.streams.parts import pack

BLOCK = 100  # rows of one learn_many
STEP_ROWS = 10  # incoming rows of one gradient step
BUFFERED = ("er", "er-ace", "derpp", "uer", "pcr", "hpcr", "onpro")
PEERS = ("er", "er-ace", "derpp")  # of mammoth
COLOURED = ("pcr", "hpcr", "onpro")  # by their papers, images in other sizes and colours; else cropped and flipped
SEARCH_SEED = 100
GRIDS: dict[str, tuple[float, ...]] = {  # rates tried on SEARCH_SEED, three for each method
    **dict.fromkeys(BUFFERED, (0.03, 0.1, 0.3)),
    "onpro": (2e-4, 5e-4, 2e-3),
    "pec": (3e-4, 1e-3, 3e-3),
}
CIFAR_GRIDS = {  # OnPro's is its paper's: a step of it costs as much as ten of the others
    **dict.fromkeys(BUFFERED, (0.003, 0.01, 0.03)),
    "onpro": (5e-4,),
    "pec": GRIDS["pec"],
}
ANALYTIC: dict[str, tuple[str, dict[str, Any]]] = {
    "ridge": ("ridge", {"gamma": 1.0}),
    "ridge, expand 1000": ("ridge", {"gamma": 1.0, "expand": 1000}),
    "air, expand 1000": ("air", {"gamma": 1.0, "expand": 1000}),
    "aef-ocl, expand 1000": ("aef-ocl", {"gamma": 1.0, "expand": 1000}),
    "slda": ("slda", {}),
    "ncm": ("ncm", {}),
}
NETWORK: dict[str, dict[str, Any]] = {
    "mnist": {"image": (1, 28, 28), "network": "mlp", "hidden": (100, 100), "augment": "none"},
    "cifar": {"image": (3, 32, 32), "network": "convnet", "channels": 10, "augment": "crop-flip"},
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    rows: dict[str, int]  # of each stream
    every: dict[str, int]  # gradient steps of STEP_ROWS from one evaluation to the next
    seeds: tuple[int, ...]
    buffers: tuple[int, ...]


FULL = Size({"mnist": 20_000, "cifar": 10_000}, {"mnist": 200, "cifar": 100}, (0, 1, 2), (200, 1000))
QUICK = Size({"mnist": 3_000, "cifar": 2_000}, {"mnist": 100, "cifar": 100}, (0,), (200,))


@dataclass(frozen=True, slots=True)
class Request:
    """All that a run depends on beside the code; plain values."""

    side: str  # ours | mammoth
    stream: str  # mnist | cifar | features
    label: str  # of the method, in the table
    kind: str
    seed: int
    rows: int
    every: int
    buffer_rows: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the run's file."""
        words = f"{self.stream}-{self.side}-{self.label}-{self.buffer_rows}-{self.seed}"
        return "".join(character if character.isalnum() or character in "-." else "_" for character in words)

    def plain(self) -> dict[str, Any]:
        """As JSON reads it back."""
        read: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return read


def learner_of(request: Request, d: int) -> Learner:
    """Untaught."""
    algorithm = LEARNERS[request.kind]
    return algorithm.learner(algorithm.config(**request.config), d, request.seed)


@lru_cache(maxsize=2)
def loaded(stream: str, seed: int, rows: int, data: Path, cache: Path) -> SplitStream:
    """The stream of a request."""
    if stream == "features":
        return cifar_features(data, seed, rows, cache)
    return stream_named(stream, data, seed, rows)


def looks(stream: SplitStream, every_rows: int) -> tuple[list[int], list[int]]:
    """Rows learned at each evaluation: every so many, and at each task's end; and which evaluations are those ends."""
    ends = [int(np.flatnonzero(stream.task == task)[-1]) + 1 for task in np.unique(stream.task)]
    at = sorted({*range(every_rows, len(stream.y), every_rows), *ends})
    return at, [at.index(end) for end in ends]


def task_accuracies(learner: Learner, stream: SplitStream, met: int) -> Floats:
    """(T,): of each task's held-out images; NaN for tasks from ``met`` on, which are still to come."""
    served = learner.servable()
    held = stream.held_x.reshape(len(stream.held_x), -1).astype(float)
    classes = np.array(served.classes, dtype=int)
    right = classes[served.predict_many(Batch(held)).argmax(axis=1)] == stream.held_y
    tasks = int(stream.held_task.max()) + 1
    return np.array([right[stream.held_task == task].mean() if task < met else np.nan for task in range(tasks)])


def taught(request: Request, stream: SplitStream) -> dict[str, Any]:
    """One pass: figures from 0 to 1, bytes of the packed state, learned rows a second of processor time."""
    x, names = stream.x.reshape(len(stream.x), -1).astype(float), stream.y.astype(str).astype(object)
    learner, seconds, curve = learner_of(request, x.shape[1]), 0.0, []
    at, learned_at = looks(stream, request.every * STEP_ROWS)
    for start, stop in zip([0, *at], at, strict=False):
        begun = time.process_time()
        for first in range(start, stop, BLOCK):
            learner.learn_many(Batch(x[first : min(first + BLOCK, stop)], names[first : min(first + BLOCK, stop)]))
        seconds += time.process_time() - begun
        curve.append(task_accuracies(learner, stream, int(stream.task[stop - 1]) + 1))
    size = len(pack(learner.state_dict().truth))
    return figures(np.array(curve), learned_at) | {"bytes": size, "seconds": seconds, "rows_per_s": len(x) / seconds}


def figures(curve: Floats, learned_at: list[int]) -> dict[str, float]:
    """Of accuracy on task i at evaluation n, curve (N, T)."""
    table = curve[learned_at]
    return {
        "accuracy": metrics.final_average_accuracy(table),
        "aaa": metrics.average_anytime_accuracy(curve),
        "wc_acc": metrics.worst_case_accuracy(curve, learned_at),
        "forgetting": metrics.forgetting(table),
    }


@lru_cache(maxsize=1)
def peer(python: str, checkout: str) -> subprocess.Popen[str]:
    """Its process, which takes fifteen seconds to begin; it ends when this one does."""
    command = [python, str(Path(__file__).with_name("peer_mammoth.py")), checkout]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout)


def peer_run(request: Request, data: Path, python: str, checkout: str) -> dict[str, Any]:
    """The same by mammoth, in an environment and a process of its own."""
    shape = NETWORK[request.stream]
    spec = {"d": int(np.prod(shape["image"])), "hidden": [], "channels": 0} | {
        key: shape[key] for key in shape if key != "augment"
    }
    asked = request.plain() | {"network": spec, "augment": shape["augment"], "method": request.kind, "data": str(data)}
    asked |= {"rate": request.config["rate"], "replay_rows": STEP_ROWS, "step_rows": STEP_ROWS}
    process = peer(python, checkout)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    result = None
    while result is None:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"mammoth's {request.kind} ended with {process.wait()}; what it said is above")
        result = json.loads(line) if line.startswith("{") else None
    final = float(np.mean(result["accuracies"][-1]))
    return {"accuracy": final, "seconds": result["seconds"], "rows_per_s": request.rows / result["seconds"]}


def kept(request: Request, folder: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The run's figures: read where the same request was run before, else run now and written whole or not at all."""
    place = folder / f"{request.name}.json"
    if place.exists():
        result: dict[str, Any] = json.loads(place.read_text())
        if result["request"] == request.plain():
            return result
    result = {"request": request.plain(), **run()}
    part = place.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.replace(place)
    return result


def network_config(stream: str, kind: str, buffer_rows: int, rate: float) -> dict[str, Any]:
    """The settings of a learner that is a network."""
    shape = {"pixels": True, "rate": rate, "classes": tuple("0123456789")}
    if kind == "pec":
        return shape
    replay = {"buffer_rows": buffer_rows, "replay_rows": STEP_ROWS, "step_rows": STEP_ROWS}
    distil = {"alpha": 0.01} if kind == "hpcr" and stream == "cifar" else {}
    views = {"augment": "colour"} if kind in COLOURED and stream == "cifar" else {}
    return shape | NETWORK[stream] | views | replay | distil


def searched(size: Size, sides: tuple[str, ...]) -> list[Request]:
    """What is run to choose rates: 5,000 rows, the smallest buffer, a seed that is in no table."""
    requests = []
    for stream, grids in (("mnist", GRIDS), ("cifar", CIFAR_GRIDS)):
        rows = min(5_000, size.rows[stream])
        for kind, rates in grids.items():
            buffer_rows = size.buffers[0] if kind in BUFFERED else 0
            for side in sides if kind in PEERS else ("ours",):
                for rate in rates if len(rates) > 1 else ():
                    config = {"rate": rate} if side != "ours" else network_config(stream, kind, buffer_rows, rate)
                    label = f"{kind} search {rate:g}"
                    requests.append(Request(side, stream, label, kind, SEARCH_SEED, rows, rows, buffer_rows, config))
    return requests


Rates = dict[tuple[str, str, str], float]


def best_rates(runs: list[dict[str, Any]]) -> Rates:
    """Of (side, stream, kind): the rate with the highest final accuracy; the smaller of equal ones."""
    best: dict[tuple[str, str, str], tuple[float, float]] = {}
    for run in runs:
        asked = run["request"]
        place, rate = (asked["side"], asked["stream"], asked["kind"]), asked["config"]["rate"]
        best[place] = max(best.get(place, (-1.0, 0.0)), (run["accuracy"], -rate))
    given = {("ours", "cifar", kind): rates[0] for kind, rates in CIFAR_GRIDS.items() if len(rates) == 1}
    return given | {place: -rate for place, (_, rate) in best.items()}


def asked_for(size: Size, rates: Rates) -> list[Request]:
    """Every run of the table."""
    requests = []
    for seed in size.seeds:
        for stream in ("mnist", "cifar"):
            rest = (seed, size.rows[stream], size.every[stream])
            requests += _analytic(stream, rest)
            if stream == "cifar":
                backbone = Request(
                    "ours", "features", "mobilenet + ridge", "ridge", *rest, 0, {"gamma": 1.0, "solve_rows": 1000}
                )
                requests += [backbone]
            for side, of, kind in rates:
                if of == stream:
                    requests += _networks(side, stream, kind, rest, (size.buffers, rates[side, of, kind]))
    return sorted(requests, key=_turn)


def _turn(request: Request) -> tuple[bool, bool, int, bool]:
    """When a run's turn is: what takes long comes last, so that a table of the rest is there early."""
    heavy = request.stream != "mnist"
    return heavy and request.seed > 0, heavy and request.kind == "onpro", request.seed, heavy


def _analytic(stream: str, rest: tuple[int, int, int]) -> list[Request]:
    return [
        Request("ours", stream, label, kind, *rest, 0, config | {"solve_rows": 1000})
        for label, (kind, config) in ANALYTIC.items()
    ]


def _networks(
    side: str, stream: str, kind: str, rest: tuple[int, int, int], given: tuple[tuple[int, ...], float]
) -> list[Request]:
    """A method with each buffer at a rate."""
    buffers, rate = given if kind in BUFFERED else ((0,), given[1])
    blank = Request(side, stream, kind, kind, *rest)
    configs = [{"rate": rate} if side != "ours" else network_config(stream, kind, rows, rate) for rows in buffers]
    return [replace(blank, buffer_rows=rows, config=config) for rows, config in zip(buffers, configs, strict=True)]
