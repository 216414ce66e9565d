"""What we use of libraries though they keep it to themselves: a release that takes a name away fails here, with the name.

Why each is used: docs/decisions/0008-private-attributes-we-use.md.
"""

from __future__ import annotations

import ast
import inspect
import re
import socket
from collections.abc import Mapping
from importlib import import_module
from operator import attrgetter
from typing import Any

import pytest
from house_rules import ROOMS, Module, dotted, imports, modules

from millrace.streams.kafka.decompression import DECODERS

# File -> private names of a library that it imports, reads or sets, in the order of the alphabet.
USED: Mapping[str, tuple[str, ...]] = {
    "learners/drift/detectors.py": (
        "_detect_mean_incr",
        "_drift_detected",
        "_ewma",
        "_ewmean",
        "_from_state",
        "_helper",
        "_ibc",
        "_incr_cutpoint",
        "_decr_cutpoint",
        "_is_init",
        "_max_decrease",
        "_mean",
        "_mean_incr",
        "_min_increase",
        "_rng",
        "_s1_decr",
        "_s1_incr",
        "_s2_decr",
        "_s2_incr",
        "_sliding_window",
        "_sum_decrease",
        "_sum_increase",
        "_total",
        "_u_max",
        "_x_max",
        "_x_mean",
        "_x_min",
        "_z",
    ),
    "learners/replay/learner.py": ("_foreach_norm",),
    "learners/river_adapter.py": ("_river_rust",),
    "services/cli/init_process.py": ("_exit",),  # of os, which documents it
    "streams/kafka/client.py": ("_client",),
    "streams/kafka/reader.py": ("_build_transport", "_client", "_fetcher", "_manager", "_next_partition_records", "_sock"),
}


DOTTED = re.compile(r"[A-Za-z]\w*(\.\w+)+")  # a text that is nothing but a dotted name: a module, or something in it


def private_names(module: Module) -> set[str]:
    """Private names that a file imports, reads or sets, as text too, and that are none of its own."""
    read = {part for _, name in imports(module) if not name.startswith("millrace.") for part in _private(name)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            read |= _private(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
            read |= _private(node.value)
        elif isinstance(node, ast.Call) and dotted(node.func) in {"getattr", "setattr", "delattr", "hasattr"}:
            read |= {part for text in node.args[1:2] if isinstance(text, ast.Constant) for part in _private(str(text.value))}
    return read - own_names(module)


def own_names(module: Module) -> set[str]:
    """Names that a file gives itself: what it defines, its fields, and what it assigns to ``self`` or ``cls``."""
    own = set[str]()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) in {"self", "cls"}:
            own.add(node.attr)
    return own


def _private(name: str) -> set[str]:
    return {part for part in name.split(".") if part.startswith("_") and not part.endswith("__") and part.strip("_")}


def test_everything_private_of_a_library_stands_here() -> None:
    """A file that uses another such name adds it to USED, and below what shows that it is there."""
    used = {module.path: private_names(module) for module in modules(*ROOMS)}
    assert {path: names for path, names in used.items() if names} == {path: set(names) for path, names in USED.items()}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("class A:\n    _c: int\n    def _d(self, it):\n        self._a = it._b + it._c + it._d()", {"_b"}),
        ("getattr(it, '_e', 0)", {"_e"}),
        ("from ray._private import worker", {"_private"}),
        ("import kafka._x", {"_x"}),
        ("import_module('river._river_rust')", {"_river_rust"}),
        ("VECTOR = 'river._river_rust.vectordict.VectorDict'", {"_river_rust"}),
        ("class A(Theirs):\n    def f(self, k):\n        return self._client is k._client", {"_client"}),
        ("class A:\n    def f(self, k):\n        self._client = k._client", set()),
        ("from millrace.streams.parts import _ours\nx.__dict__, _", set()),
    ],
)
def test_a_private_name_is_found(source: str, names: set[str]) -> None:
    """One of a library is, imported, read or in text; one that the file itself gives is not, whoever's instance has it."""
    assert private_names(Module("streams/a.py", source)) == names


def _seen(kind: str, **settings: Any) -> Any:
    """A detector that has seen enough losses to hold all that it keeps."""
    drift = pytest.importorskip("river.drift")
    detector = attrgetter(kind)(drift)(**settings)
    for row in range(120):
        detector.update(float(row % 2))
    return detector


SENSORS: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("ADWIN", {}, ("_helper.__getstate__", "_helper.__setstate__", "_helper.update", "width", "total")),
    (
        "PageHinkley",
        {},
        (
            "_drift_detected",
            "_sum_increase",
            "_sum_decrease",
            "_min_increase",
            "_max_decrease",
            "_x_mean._mean",
            "_x_mean._from_state",
            "threshold",
        ),
    ),
    ("KSWIN", {"seed": 1}, ("_drift_detected", "_rng.getstate", "_rng.setstate", "window", "window_size", "n")),
    (
        "binary.HDDMA",
        {"two_sided_test": True},
        ("_drift_detected", "_mean_incr", "_x_min._mean", "_x_max._mean", "_z._mean", "_z._from_state", "drift_confidence"),
    ),
    (
        "binary.HDDMW",
        {"two_sided_test": True},
        (
            "_drift_detected",
            "_detect_mean_incr",
            "_incr_cutpoint",
            "_decr_cutpoint",
            *(f"{name}._ibc" for name in ("_total", "_s1_decr", "_s1_incr", "_s2_decr", "_s2_incr")),
            "_total._is_init",
            "_total._ewma._ewmean.__getstate__",
            "_total._ewma._ewmean.__setstate__",
        ),
    ),
    ("binary.FHDDM", {}, ("_drift_detected", "_u_max", "_sliding_window", "n_one", "sliding_window_size")),
)


@pytest.mark.parametrize(("kind", "settings", "names"), SENSORS, ids=[kind for kind, _, _ in SENSORS])
def test_river_still_has_what_its_detectors_keep(kind: str, settings: dict[str, Any], names: tuple[str, ...]) -> None:
    """Each name, of a detector that has seen losses."""
    detector = _seen(kind, **settings)
    assert [name for name in names if missing(detector, name)] == []


def test_river_still_has_the_vectors_of_its_linear_models() -> None:
    """river_adapter.py knows the class by its name."""
    rust = pytest.importorskip("river._river_rust.vectordict", reason="river is not installed")
    assert rust.VectorDict.__name__ == "VectorDict"


CONSUMER = ("_client.close", "_client._manager._build_transport", "_fetcher._next_partition_records")


def test_kafka_python_still_has_what_makes_its_sockets() -> None:
    """The way from a consumer to what makes a connection, and from that to its socket; nothing is connected here."""
    kafka = pytest.importorskip("kafka", reason="kafka-python is not installed")
    consumer = kafka.KafkaConsumer(bootstrap_servers="127.0.0.1:1", api_version=(3, 0))
    try:
        assert [name for name in CONSUMER if missing(consumer, name)] == []
    finally:
        consumer.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert import_module("kafka.net.transport").KafkaTCPTransport(None, ours)._sock is ours


def test_kafka_python_still_calls_its_decoders_by_name() -> None:
    """Bounded ones are put under these names, in both modules that decode records."""
    pytest.importorskip("kafka", reason="kafka-python is not installed")
    lacking = {}
    for name, older in (("default_records", ()), ("legacy_records", ("zstd_decode",))):  # the older format has no Zstandard
        module = import_module(f"kafka.record.{name}")
        called = {node.id for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Name)}
        lacking[name] = set(DECODERS) - called - set(older)
    assert lacking == {"default_records": set(), "legacy_records": set()}


def test_torch_still_has_the_norms_of_many_tensors() -> None:
    """One call for all gradients."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert [float(norm) for norm in torch._foreach_norm([torch.tensor([3.0, 4.0])])] == [5.0]


def test_a_name_that_is_gone_is_found() -> None:
    """A dotted name that leads nowhere, at either end."""
    assert [missing(Module("a.py", ""), name) for name in ("path.strip", "path._gone", "_gone.strip")] == [False, True, True]


def missing(thing: Any, path: str) -> bool:
    """Whether a dotted name leads nowhere."""
    try:
        attrgetter(path)(thing)
    except AttributeError:
        return True
    return False
