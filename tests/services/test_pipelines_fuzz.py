"""Thousands of random pipelines: what ours learns of them in each format is what an independent ridge learns of the rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fuzz_cases import FORMATS, GAMMA, TYPES, Rows, answers_due, drawn, features_due

from millrace.learners.analytic.ridge import RidgeConfig
from millrace.learners.protocol import Batch, Floats
from millrace.learners.table import LEARNERS
from millrace.streams.features.columns import Features
from millrace.streams.formats.avro import Registry
from millrace.streams.formats.contents import Contents
from millrace.streams.journal.entries import Step
from millrace.streams.state.fold import Fold, Owner, Stages
from millrace.streams.state.microbatch import MicroBatches

CASES = 5040  # in all, each in one format
PARTS = 12  # tests that share them
BATCH_ROWS = 64
READS = 3  # in which a worker gets them
CLOSE = 1e-6  # of the targets' deviation, or of what float64 can say of numbers that far from zero


def answers_of_ours(rows: Rows, x: Floats, kind: str, folder: Path) -> Floats:
    """What the ridge of a fold answers to x (n, d), the labelled rows as they are due, once it has read all rows."""
    (folder / "1.avsc").unlink(missing_ok=True)
    events = list(FORMATS[kind](rows, folder))
    contents = Contents(rows.schema, 1 << 20, 64 << 20, registry=Registry("http://127.0.0.1:9", folder))
    decoded, refused = contents.decode(events)
    assert not refused and len(decoded) == len(rows), (kind, [(record.reason, record.detail) for record in refused[:3]])
    algorithm = LEARNERS["ridge"]
    config = RidgeConfig(task="regress", gamma=GAMMA, solve_rows=len(x))
    stages = Stages(Features(rows.schema, algorithm.scaling(config)), MicroBatches(BATCH_ROWS, 1000))
    fold = Fold(rows.schema, lambda: algorithm.learner(config, rows.schema.width, 0), stages, {}, Owner("main", "main"))
    for seq in range(READS):
        read = decoded.only(np.arange(len(rows))[seq * len(rows) // READS : (seq + 1) * len(rows) // READS])
        fold.step(Step(branch="main", seq=seq + 1, epoch=1, reads=[], clock_ms=1000 if seq + 1 < READS else 9999), [read])
    assert fold.counts.learned == len(x)
    scores: Floats = fold.learner.servable().predict_many(Batch(x))
    return scores[:, 0]


def thirds_of(rows: Rows) -> Iterator[int]:
    """Which third of the magnitudes from 1e-12 to 1e36 the widest number of each field of numbers is in."""
    for field in rows.schema.fields:
        if field.type == "numeric":
            cells = [cell for cell in rows.columns[field.name] if cell is not None]
            yield int(np.clip((math.log10(max(np.abs(cells).max(), 1e-12)) + 12) // 16, 0, 2))


def declared(rows: Rows) -> set[str]:
    """The types of the fields, as TYPES names them."""
    kinds = set()
    for field in rows.schema.fields:
        grows = ", grow" if field.categories == "grow" else ""
        missing = "" if field.missing == "reject" else f", {field.missing}"
        kinds.add("list" if field.size > 1 else f"{field.type}{grows}{missing}")
    return kinds


@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_learned_of_random_rows_is_what_an_independent_ridge_learns(part: int, tmp_path: Path) -> None:
    """Whatever the schema, the format, the magnitude and the shape; and the cases are what they are said to be."""
    formats, types, thirds = Counter[str](), Counter[str](), Counter[int]()
    cases = range(part * CASES // PARTS, (part + 1) * CASES // PARTS)
    for seed in cases:
        kind = list(FORMATS)[seed % len(FORMATS)]
        rows = drawn(seed, lists=kind != "CSV")
        y, x = np.array(rows.labelled.columns["y"]), features_due(rows.labelled)
        due, ours = answers_due(x, y), answers_of_ours(rows, x, kind, tmp_path)
        room = CLOSE * y.std() + 1e-13 * np.abs(y).max()
        worst = float(np.abs(ours - due).max())
        assert worst <= room, f"case {seed} ({kind}): {worst / y.std():.2e} of the deviation apart; {rows.schema}"
        formats[kind] += 1
        types.update(declared(rows))
        thirds.update(thirds_of(rows.labelled))
    assert min(formats[kind] for kind in FORMATS) >= len(cases) // len(FORMATS)
    assert min(types[kind] for kind in TYPES) >= len(cases) // len(TYPES)
    assert min(thirds[third] for third in range(3)) >= len(cases) // 3
