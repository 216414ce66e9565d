"""A column of `Batch` stands in one place: a line added to its declaration is all that a new column needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import added_column
import numpy as np
import pytest
from added_column import ANSWERED, batch_of, write_states
from house_rules import ROOT

from millrace.learners.protocol import COLUMNS, Batch, join
from millrace.streams.labels.pending import Waiting
from millrace.streams.state.microbatch import MicroBatches
from millrace.streams.state.window import Window

CHILD = Path(added_column.__file__)
LAST = "    sequences: Array | None = column(missing=None)"  # of the declaration, as the file begins that line
ADDED = "    origin: Floats | None = column(missing=-1.0)\n"


def seen(tree: Path, stored: Path) -> dict:
    """What becomes of the column in a tree that stands in for ours, on states stored before."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(CHILD), "origin", str(stored)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the two rooms, with a line more in the declaration of a batch."""
    for room in ("learners", "streams"):
        shutil.copytree(ROOT / room, tmp_path / "tree" / "millrace" / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tree" / "millrace" / "__init__.py").touch()
    protocol = tmp_path / "tree" / "millrace" / "learners" / "protocol.py"
    lines = protocol.read_text().splitlines(keepends=True)
    (at,) = [number for number, line in enumerate(lines) if line.startswith(LAST)]
    protocol.write_text("".join([*lines[: at + 1], ADDED, *lines[at + 1 :]]))
    return tmp_path / "tree"


def test_a_column_added_by_one_line_goes_wherever_rows_go(tree: Path, tmp_path: Path) -> None:
    """It is cut, joined, kept and stored; a state from before it gives None, and its rows have MISSING beside newer ones."""
    stored = tmp_path / "stored"
    stored.mkdir()
    write_states(stored, rows=3)
    values = [10.0, 11.0, 12.0, 13.0]
    assert seen(tree, stored) == {
        "columns": [*COLUMNS, "origin"],
        "only": [13.0, 11.0],
        "rows": [11.0, 12.0],
        "join": [*values, -1.0, -1.0, *values],
        "batches": values,
        "window": values,
        "waiting": values,
        "older batches": None,
        "older window": None,
        "older waiting": None,
        "older batches gone on": [-1.0, -1.0, -1.0, *values],
        "older window gone on": [-1.0, -1.0, -1.0, *values],
        "older waiting gone on": [-1.0, -1.0, -1.0, *values],
    }


def test_a_name_that_is_no_column_is_refused() -> None:
    """The twin: in our own tree the same run finds no such column."""
    with pytest.raises(TypeError, match="origin"):
        batch_of(4, {"origin": np.zeros(4)})


def test_pieces_with_and_without_a_column_join_to_one_of_all_rows() -> None:
    """Every row weighs 1 where its piece has no weights, and no row's weight moves to another."""
    x = np.zeros((2, 1))
    joined = join([Batch(x), Batch(x, weight=np.array([3.0, 4.0])), Batch(x, key=np.array([b"a", b"b"], dtype=object))])
    assert joined.weight is not None and joined.weight.tolist() == [1.0, 1.0, 3.0, 4.0, 1.0, 1.0]
    assert joined.key is not None and joined.key.tolist() == [None, None, None, None, b"a", b"b"]
    assert joined.y is None and joined.t is None


def test_a_slot_that_is_used_again_keeps_nothing_of_the_row_before() -> None:
    """A prediction without a key has none, though the one that had its slot before had one."""
    waiting, key = Waiting(), np.array([b"k"], dtype=object)
    slot = waiting.take(1, ANSWERED, 99)
    waiting.fill([slot], Batch(np.zeros((1, 1)), key=key, weight=np.array([5.0])))
    del waiting.slots[1]
    waiting.release([slot])
    again = waiting.take(2, ANSWERED, 99)
    waiting.fill([again], Batch(np.zeros((1, 1))))
    batch = waiting.training_rows([again], np.array(["ham"], dtype=object), [0]).batch
    assert again == slot and batch.key is not None and batch.weight is not None
    assert (batch.key.tolist(), batch.weight.tolist()) == ([None], [1.0])


def test_no_column_has_the_name_of_something_stored_beside_it() -> None:
    """A state of rows holds other values beside their columns; a column of the same name would be taken for one."""
    batch = Batch(np.zeros((1, 1)))  # the least a batch has
    batches, window, waiting = MicroBatches(9, 9), Window(9), Waiting()
    list(batches.cut(batch, np.zeros(1, dtype=np.int64)))
    window.add(batch)
    waiting.fill([waiting.take(1, ANSWERED, 99)], batch)
    for state in (batches.state(), window.parts()["window"], waiting.state()):
        assert set(state) & set(COLUMNS) == {"x"}
