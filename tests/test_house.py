"""The rules of style in CONTRIBUTING.md marked [T], over our own files; and each of them failing on a file made to break it."""

from importlib import import_module

import click
import house_rules as house
import pytest
from house_rules import FILE_RULES, ROOMS, ROOT, TEST_RULES, Module, modules

LONG_FUNCTION = "def f() -> None:\n" + "    g()\n" * 60

# Rule, path, and a file at that path that breaks it.
BROKEN_TWINS = [
    ("nothing is unpickled", "streams/a.py", "import pickle"),
    ("nothing is unpickled", "streams/a.py", "from cloudpickle import loads"),
    ("nothing is unpickled", "streams/a.py", "import dill as json"),
    ("nothing is unpickled", "learners/a.py", "torch.load(path)"),
    ("nothing is unpickled", "learners/a.py", "torch.load(path, weights_only=False)"),
    ("nothing is unpickled", "learners/a.py", "np.load(path, allow_pickle=True)"),
    ("nothing is unpickled", "learners/a.py", "pd.read_pickle(path)"),
    ("everything is caught only where the table says why", "streams/a.py", "try: f()\nexcept: g()"),
    ("everything is caught only where the table says why", "streams/a.py", "try: f()\nexcept Exception: g()"),
    (
        "everything is caught only where the table says why",
        "streams/a.py",
        "try: f()\nexcept (OSError, BaseException): g()",
    ),
    ("everything is caught only where the table says why", "streams/a.py", "with contextlib.suppress(Exception): f()"),
    ("only config.py reads the environment", "services/cli/commands.py", "import os\nx = os.environ['A']"),
    ("only config.py reads the environment", "services/cli/commands.py", "from os import getenv"),
    ("only config.py reads the environment", "streams/a.py", "x = os.getenv('A')"),
    ("no function takes **kwargs", "streams/a.py", "def f(**kwargs):\n    g(**kwargs)"),
    ("files, functions and parameter lists are small", "streams/a.py", "x = 1\n" * 401),
    ("files, functions and parameter lists are small", "streams/a.py", LONG_FUNCTION),
    ("files, functions and parameter lists are small", "streams/a.py", "def f(a, b, c, d, e, *f, g): pass"),
    ("names are nouns from the domain", "streams/kafka_utils.py", ""),
    ("names are nouns from the domain", "streams/misc/a.py", ""),
    ("names are nouns from the domain", "streams/a.py", "class OffsetManager: pass"),
    ("names are nouns from the domain", "streams/a.py", "class BaseSource: pass"),
    ("every function is typed", "streams/a.py", "def f(a) -> None: pass"),
    ("every function is typed", "streams/a.py", "def f(a: int): pass"),
    ("every function is typed", "streams/a.py", "class A:\n    def f(self, *, a) -> None: pass"),
    ("learners have no clock and no global generator", "learners/a.py", "import time"),
    ("learners have no clock and no global generator", "learners/a.py", "from datetime import datetime"),
    ("learners have no clock and no global generator", "learners/a.py", "import random"),
    ("learners have no clock and no global generator", "learners/a.py", "np.random.seed(0)"),
    ("learners have no clock and no global generator", "learners/a.py", "x = np.random.normal(size=3)"),
    ("learners have no clock and no global generator", "learners/a.py", "from numpy.random import normal"),
    ("learners have no clock and no global generator", "learners/a.py", "rng = np.random.default_rng()"),
    ("learners have no base class", "learners/a.py", "class Ridge(Linear): pass"),
    ("learners have no base class", "learners/a.py", "class Ridge(Protocol): pass"),
    ("learners have no base class", "learners/protocol.py", "class Learner(ABC): pass"),
    ("torch is for learners", "services/a.py", "import torch"),
    ("torch is for learners", "streams/a.py", "def f():\n    from torch.nn import functional"),
    ("is None decides on labels", "streams/a.py", "if not y: f()"),
    ("is None decides on labels", "streams/a.py", "if batch.y: f()"),
    ("is None decides on labels", "streams/a.py", "z = label or default"),
    ("is None decides on labels", "streams/a.py", "z = [label for label in found if label]"),
    ("is None decides on labels", "streams/a.py", "z = 1 if bool(labels) else 0"),
    ("our own code is never mocked", "tests/a.py", "from unittest.mock import patch"),
    ("our own code is never mocked", "tests/a.py", "from unittest import mock"),
]

# Files that come close and break nothing.
SOUND_TWINS = [
    ("nothing is unpickled", "learners/a.py", "torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)"),
    (
        "everything is caught only where the table says why",
        "streams/a.py",
        "try: f()\nexcept (OSError, ValueError): g()",
    ),
    ("only config.py reads the environment", "services/config/config.py", "x = os.environ['A']"),
    (
        "files, functions and parameter lists are small",
        "streams/a.py",
        "class A:\n    def f(self, a, b, c, d, e, g): pass",
    ),
    ("names are nouns from the domain", "streams/database.py", "class Baseline: pass"),
    ("every function is typed", "streams/a.py", "class A:\n    def f(self, a: int) -> None: pass"),
    ("learners have no clock and no global generator", "learners/a.py", "rng = np.random.default_rng(seed)"),
    (
        "learners have no clock and no global generator",
        "learners/a.py",
        "def f(rng: np.random.Generator) -> None: pass",
    ),
    ("learners have no base class", "learners/protocol.py", "class Learner(Protocol): pass"),
    ("torch is for learners", "learners/a.py", "import torch"),
    ("is None decides on labels", "streams/a.py", "if y is None or label == '': f(not found)"),
]


@pytest.mark.parametrize("rule", FILE_RULES)
def test_our_files_keep(rule: str) -> None:
    """Every file of the three rooms keeps the rule; and there are files, so that this says something."""
    ours = modules(*ROOMS)
    assert {module.room for module in ours} == set(ROOMS)
    assert [violation for module in ours for violation in FILE_RULES[rule](module)] == []


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN_TWINS)
def test_a_broken_twin_is_caught(rule: str, path: str, source: str) -> None:
    """A file made to break the rule is caught, with its path."""
    violations = list(FILE_RULES[rule](Module(path, source)))
    assert violations
    assert all(violation.startswith(path) for violation in violations)


@pytest.mark.parametrize(("rule", "path", "source"), SOUND_TWINS)
def test_a_sound_twin_passes(rule: str, path: str, source: str) -> None:
    """A file that comes close to breaking the rule, and does not, is let through."""
    assert list(FILE_RULES[rule](Module(path, source))) == []


def test_every_rule_has_a_broken_twin() -> None:
    """No rule stands in the table without a file that shows it can fail."""
    assert {rule for rule, _, _ in BROKEN_TWINS} == set(FILE_RULES)


@pytest.mark.parametrize("rule", TEST_RULES, ids=lambda rule: rule.__name__)
def test_tests_are_not_free_of(rule) -> None:
    """The rules that hold for tests hold for these files too."""
    assert [violation for module in modules("tests") for violation in rule(module)] == []


def test_every_excuse_for_catching_everything_is_needed() -> None:
    """A row of BROAD_EXCEPTS names a place that catches everything, and gives a reason."""
    places = {(module.path, function) for module in modules(*ROOMS) for _, function in house.broad_excepts(module)}
    assert set(house.BROAD_EXCEPTS) <= places
    assert all(len(why.split()) > 3 for why in house.BROAD_EXCEPTS.values())


def test_every_excuse_for_open_keywords_is_needed() -> None:
    """OPEN_KEYWORDS names the functions that have them, and no others."""
    functions = [(module.path, function) for module in modules(*ROOMS) for function in house.functions(module.tree)]
    assert {(path, function.name) for path, function in functions if function.args.kwarg} == house.OPEN_KEYWORDS


def test_each_outside_system_has_one_door() -> None:
    """Each outside system is imported by one file, so that everything else runs without it."""
    assert list(house.doors_passed(modules(*ROOMS))) == []


@pytest.mark.parametrize(
    "tree",
    [
        {"streams/journal/journal.py": "import apsw"},
        {"streams/sqlite/database.py": "import apsw", "streams/journal/store.py": "from sqlite3 import connect"},
        {"services/endpoint/http.py": "from kafka import KafkaConsumer"},
        {"services/serving/replica.py": "from ray import serve", "services/endpoint/http.py": "import ray.serve.handle"},
    ],
)
def test_a_second_door_is_caught(tree: dict[str, str]) -> None:
    """An outside system imported by another file than its door is caught."""
    assert len(list(house.doors_passed([Module(*file) for file in tree.items()]))) == 1


def test_no_module_imports_itself_by_another() -> None:
    """There is no cycle among the imports of our modules, deferred ones included."""
    assert list(house.import_cycles(modules(*ROOMS))) == []


def test_an_import_cycle_is_caught() -> None:
    """A cycle of three, one of them inside a function and one relative, is caught."""
    tree = {
        "streams/a.py": "from millrace.streams import b",
        "streams/b.py": "def f():\n    from millrace.streams.c import g",
        "streams/c.py": "from .a import h",
    }
    assert len(list(house.import_cycles([Module(*file) for file in tree.items()]))) == 1


def test_files_that_tests_share_have_names_of_their_own() -> None:
    """No two files under tests/ have the same name; two made to are caught."""
    assert list(house.repeated_file_names(modules("tests"))) == []
    assert len(list(house.repeated_file_names([Module("tests/a/x.py", ""), Module("tests/b/x.py", "")]))) == 1


def test_the_worker_steps_in_the_order_of_the_journal() -> None:
    """The worker's step is the numbered list of docs/design/journal.md, rule 5, in that order."""
    worker = next(module for module in modules("streams") if module.path == "streams/worker/worker.py")
    assert house.steps_yielded(worker) == house.STEP


@pytest.mark.parametrize("wrong", [house.STEP[:-1], [*house.STEP[:2], "learned", "appended", *house.STEP[4:]]])
def test_a_step_left_out_or_moved_is_caught(wrong: list[str]) -> None:
    """A worker that skips a step, or learns before it appends, does not pass for the numbered list."""
    source = "class Worker:\n    def step(self):\n" + "".join(f"        yield {name!r}\n" for name in wrong)
    assert house.steps_yielded(Module("streams/worker/worker.py", source)) == wrong != house.STEP


def test_a_learner_has_five_methods() -> None:
    """More abilities are more functions: the protocol keeps to its five methods."""
    protocol = next(module for module in modules("learners") if module.path == "learners/protocol.py")
    five = {"learn_many", "predict_many", "state_dict", "load_state_dict", "servable"}
    assert house.methods_of(protocol, "Learner") == five
    assert house.methods_of(Module("a.py", "class Learner:\n    def merge(self): pass"), "Learner") == {"merge"}


def without_example(command: click.Command, name: str) -> list[str]:
    """The commands under this one whose help shows no example."""
    if isinstance(command, click.Group):
        return [path for part in command.commands.items() for path in without_example(part[1], f"{name} {part[0]}")]
    return [] if "Example" in (command.help or "") and f"{name} " in f"{command.help} " else [name]


def test_every_command_shows_an_example_in_its_help() -> None:
    """The help of every command has an example that calls that command."""
    from millrace.services.cli import commands as cli

    commands = [thing for thing in vars(cli).values() if isinstance(thing, click.Group)]
    root = next(group for group in commands if not any(group in other.commands.values() for other in commands))
    assert root.commands
    assert without_example(root, "millrace") == []


def test_a_command_without_an_example_is_caught() -> None:
    """A command without help, and one whose example calls another command, are both named."""
    group = click.Group(
        commands={
            "mute": click.Command("mute"),
            "wrong": click.Command("wrong", help="Does it.\n\nExample:\n  millrace right now"),
            "right": click.Command("right", help="Does it.\n\nExample:\n  millrace right now"),
        }
    )
    assert without_example(group, "millrace") == ["millrace mute", "millrace wrong"]


def untabled(errors: object, table: object) -> list[str]:
    """The exception classes of a module that have no row of their own in a table."""
    classes = [thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, Exception)]
    return [kind.__name__ for kind in classes if kind not in table]


@pytest.mark.parametrize("room", ROOMS)
def test_every_error_has_a_row_in_the_table(room: str) -> None:
    """Every exception class of a room's errors.py has its exit code, HTTP and gRPC status in services/errors.py."""
    from millrace.services.errors import MEANINGS

    errors = import_module(f"millrace.{room}.errors")
    assert untabled(errors, MEANINGS) == []
    assert untabled(errors, {}) != []


def test_the_makefile_explains_every_target() -> None:
    """Every target that people call has a `##` comment, which is what `make` prints; one without is caught."""
    assert house.unexplained_targets((ROOT / "Makefile").read_text()) == []
    assert house.unexplained_targets("a: b  ## does\nUV := x\nb-c:\n\tdo\n.venv/x: y\n") == ["b-c"]


def test_ci_only_calls_make() -> None:
    """CI's script calls targets of the Makefile and does nothing else itself; one that does is caught."""
    script = (ROOT / ".ci" / "run").read_text()
    assert house.other_than_make(script) == []
    assert "make test" in script.splitlines()
    assert house.other_than_make("#!/bin/sh\nmake test\npip install x\nmake a && b\n") == [
        "pip install x",
        "make a && b",
    ]
