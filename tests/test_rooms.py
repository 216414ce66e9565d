"""The table of sub-rooms: our files keep to it, and each way to leave it is caught."""

import tomllib

import house_rooms as rooms
import pytest
from house_rooms import ARROWS, EXCEPTIONS, NEVER
from house_rules import ROOMS, ROOT, Module, modules


def test_our_imports_follow_the_table() -> None:
    """No file imports what its sub-room may not."""
    assert [violation for module in modules(*ROOMS) for violation in rooms.arrows_outside(module)] == []


def test_every_arrow_of_the_table_is_used() -> None:
    """An arrow that no import needs any more is taken out of ARROWS, so that nobody relies on it by accident."""
    used = rooms.used_arrows(modules(*ROOMS))
    assert {place: set(targets.split()) - used.get(place, set()) for place, targets in ARROWS.items()} == {
        place: set() for place in ARROWS
    }


def test_no_arrow_points_up() -> None:
    """The table has floors: every place imports lower ones only."""
    floor = rooms.floors(ARROWS)
    assert all(floor[target] < floor[place] for place, targets in ARROWS.items() for target in targets.split())
    with pytest.raises(RecursionError):
        rooms.floors({"a": "b", "b": "a"})


def test_learners_know_nothing_of_streams_nor_streams_of_services() -> None:
    """No arrow leads into a room above its own; in a table of two that do, both are named."""
    assert list(rooms.arrows_between_rooms_that_rise(ARROWS)) == []
    wrong = {"learners/a": "streams/b", "streams/b": "learners services", "learners": "", "services": "learners streams/b"}
    assert list(rooms.arrows_between_rooms_that_rise(wrong)) == ["learners/a -> streams/b", "streams/b -> services"]


@pytest.mark.parametrize(("place", "target", "why"), NEVER, ids=lambda word: word)
def test_some_arrows_may_never_be_drawn(place: str, target: str, why: str) -> None:
    """Whoever adds one of these to the table is told what would be lost."""
    assert target not in ARROWS[place].split(), why


def test_every_file_stands_in_a_place_of_the_table() -> None:
    """Sub-rooms have a sentence in ``__init__.py`` and at most twenty files; the roots have the files that ROOTS names."""
    assert list(rooms.misplaced(modules(*ROOMS))) == []


def test_every_exception_exists() -> None:
    """A file that imports sub-rooms from a room's root is in the table and on the disk."""
    assert {path for path in EXCEPTIONS if (ROOT / f"{path}.py").exists()} == set(EXCEPTIONS) <= set(ARROWS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("learners/replay/a.py", "from millrace.streams.formats import json_rows"),
        ("learners/replay/a.py", "from millrace import services"),
        ("learners/replay/a.py", "def f():\n    import millrace.streams.formats.json_rows"),
        ("learners/protocol.py", "from millrace.learners.linear.servable import LinearServable"),
        ("streams/journal/a.py", "from millrace.streams.state.fold import Fold"),
        ("streams/journal/a.py", "from ..state import fold"),
        ("streams/kafka/a.py", "from ...services import cli"),
        ("streams/worker/a.py", "import_module('millrace.services.cli')"),
        ("streams/worker/a.py", "_imported('millrace.services.cli.commands', 'click')"),
        ("learners/linear/a.py", "loaded(module='millrace.learners.replay.learner')"),
        ("services/decisions/a.py", "from millrace.services.training import run"),
        ("services/endpoint/a.py", "from millrace.services.protocol import inference_pb2\nfrom streams import parts"),
    ],
)
def test_an_import_against_an_arrow_is_caught(path: str, source: str) -> None:
    """Each with the file, the line and what that place may import."""
    violations = list(rooms.arrows_outside(Module(path, source)))
    assert len(violations) == 1 and violations[0].startswith(f"{path}:")


def test_an_import_along_an_arrow_passes() -> None:
    """Of a lower sub-room, of one's own, of generated messages."""
    source = (
        "from millrace.services.protocol import inference_pb2\nfrom . import http\nfrom millrace.streams.parts import pack\n"
    )
    assert list(rooms.arrows_outside(Module("services/endpoint/a.py", source))) == []


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("streams/a.py", "", "put it into a sub-room"),
        ("streams/cellar/a.py", "", "add its line"),
        ("streams/state/__init__.py", '"""A sentence."""\nx = 1\n', "more than a sentence"),
    ],
)
def test_a_file_in_the_wrong_place_is_caught(path: str, source: str, words: str) -> None:
    """With what to do."""
    assert [words in violation for violation in rooms.misplaced([Module(path, source)])] == [True]


def test_a_sub_room_with_too_many_files_is_caught() -> None:
    """The twenty-first file parts it."""
    tree = [Module(f"streams/state/a{number}.py", "") for number in range(rooms.MAX_FILES + 1)]
    assert list(rooms.misplaced(tree)) == ["streams/state has 21 files; part it"]


def test_no_test_imports_another() -> None:
    """Nor does anything else under tests/; and of the folders that imports are looked for in, only the root holds tests."""
    assert list(rooms.tests_imported(modules("tests"))) == []
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert [folder for folder in settings["pythonpath"] if any((ROOT / folder).glob("test_*.py"))] == ["tests"]


@pytest.mark.parametrize(
    "source", ["from test_kill import append", "import test_kill", "def f():\n    from tests.streams.test_kill import append"]
)
def test_an_import_of_a_test_is_caught(source: str) -> None:
    """With the file, the line and what to do; a file whose functions alone are called so is no test."""
    broken = [Module("tests/services/a.py", source), Module("tests/b.py", "from pages import test_page")]
    (violation,) = rooms.tests_imported(broken)
    assert violation.startswith("tests/services/a.py:") and "support folder" in violation
