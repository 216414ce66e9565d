"""docs/design/journal.md, test 2, on SQLite: real processes, real kill -9, and a fresh process that folds what survived."""

from __future__ import annotations

import json
import random

import pytest
from doomed import die_often
from exactly_once import ALL_HOLDS, KILLS, ROWS, append, die_at_phase, doomed_on, instance_of, start, verify, what_was_learned
from pipelines import TIMEOUT_S

from millrace.streams.journal.journal import summarise

pytestmark = pytest.mark.slow


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline file in a folder of its own, which is its home too."""
    path = tmp_path / "kills.toml"
    path.write_text(KILLS)
    return path


def test_twenty_deaths_between_phases_lose_nothing_and_learn_nothing_twice(pipeline):
    """Twenty seeded points between the phases of a step; a fresh process proves the journal afterwards, bit for bit."""
    append(pipeline)
    chance = random.Random(7)
    for _ in range(20):
        die_at_phase(pipeline, chance.randint(1, 45))
    die_at_phase(pipeline, 0)
    assert what_was_learned(pipeline) == ALL_HOLDS
    proof = verify(pipeline)
    assert proof.returncode == 0, proof.stderr
    assert json.loads(proof.stdout)["records"] == ROWS


def test_twenty_deaths_at_any_phase_lose_nothing_and_learn_nothing_twice(pipeline):
    """Five each in a start, after it, while rows are read and while a checkpoint is marked; rows keep coming all the while."""
    pipeline.write_text(KILLS.replace("checkpoint_rows = 500", "checkpoint_rows = 150"))
    took = die_often(doomed_on(pipeline), 20, ROWS, random.Random(11))
    die_at_phase(pipeline, 0)
    assert what_was_learned(pipeline) == ALL_HOLDS
    epochs = summarise(instance_of(pipeline).journal("main"), "main").end.epoch
    assert took == 15 and epochs > took, "each of them had the branch when it died, and then the last"
    proof = verify(pipeline)
    assert proof.returncode == 0, proof.stderr


def test_ten_deaths_while_versions_take_the_journal_over_lose_no_entry(pipeline):
    """Appends, segments and deletions are cut off anywhere: what is left of the journal and segments are all of it."""
    often = KILLS.replace("version_rows = 2000", "version_rows = 320\nkeep = 2\njournal_keep_entries = 2")
    pipeline.write_text(often.replace("checkpoint_rows = 500", "checkpoint_rows = 200") + "[versions]\nkeep = 2\n")
    append(pipeline)
    chance, firsts = random.Random(13), []
    instance = instance_of(pipeline)
    for _ in range(10):
        die_at_phase(pipeline, chance.randint(20, 75))
        firsts.append(instance.journal("main").first())
    die_at_phase(pipeline, 0)
    assert what_was_learned(pipeline) == ALL_HOLDS
    journal = instance.journal("main")
    assert firsts == sorted(firsts) and journal.first() > firsts[-1] > 0
    assert [offset for offset, _ in journal.read(0)] == list(range(len(list(journal.read(0)))))
    proof = verify(pipeline)
    assert proof.returncode == 0, proof.stderr
    assert (json.loads(proof.stdout)["records"], json.loads(proof.stdout)["base"]) == (ROWS, "fork")


def test_a_worker_that_forgets_its_waiting_rows_is_caught(pipeline):
    """The same facts do not hold for a broken twin, so they prove something."""
    append(pipeline)
    for phases in (111, 111, 129):
        die_at_phase(pipeline, phases, "lossy")
    start(pipeline, 0, "lossy").wait(timeout=TIMEOUT_S)
    assert what_was_learned(pipeline) != ALL_HOLDS
    assert verify(pipeline).returncode == 1
