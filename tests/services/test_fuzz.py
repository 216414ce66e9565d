"""Thousands of random pipelines: what ours learns of them in each format is what an independent ridge learns of the rows."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzz_cases import FORMATS, GAMMA, TYPES, Rows, answers_due, drawn, features_due

from millrace.learners.analytic.ridge import RidgeConfig
from millrace.learners.protocol import Floats, join
from millrace.learners.table import LEARNERS
from millrace.streams.features.columns import Features
from millrace.streams.formats.avro import Registry
from millrace.streams.formats.contents import Contents

CASES = 5040  # in all, each in one format
PARTS = 12  # tests that share them
BATCH_ROWS = 64
CLOSE = 1e-6  # of the targets' deviation, or of what float64 can say of numbers that far from zero


def answers_of_ours(rows: Rows, kind: str, folder: Path) -> Floats:
    """What a ridge of ours answers to the rows (n,) once it has learned them, by the way that a worker goes."""
    (folder / "1.avsc").unlink(missing_ok=True)
    events = list(FORMATS[kind](rows, folder))
    contents = Contents(rows.schema, 1 << 20, 64 << 20, registry=Registry("http://127.0.0.1:9", folder))
    decoded, refused = contents.decode(events)
    assert not refused and len(decoded) == len(rows), (kind, [(record.reason, record.detail) for record in refused[:3]])
    algorithm = LEARNERS["ridge"]
    config = RidgeConfig(task="regress", gamma=GAMMA, solve_rows=len(rows))
    stage, learner = Features(rows.schema, algorithm.scaling(config)), algorithm.learner(config, rows.schema.width, 0)
    encoded, given = stage.encode(decoded), []
    for start in range(0, len(encoded), BATCH_ROWS):
        given.append(stage.learn(encoded.rows(start, min(start + BATCH_ROWS, len(encoded)))))
        learner.learn_many(given[-1])
    scores: Floats = learner.servable().predict_many(join(given))
    return scores[:, 0]


def magnitude(rows: Rows) -> int:
    """Which third of the magnitudes from 1e-12 to 1e36 the widest number is in; -1: there is none."""
    cells = [column for name, column in rows.columns.items() if name != "y" and not isinstance(column[0], str)]
    numbers = np.array([cell for column in cells for cell in np.ravel([each for each in column if each is not None])])
    if not numbers.size or not np.abs(numbers).max():
        return -1
    return int(np.clip((math.log10(np.abs(numbers).max()) + 12) // 16, 0, 2))


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
        rows, kind = drawn(seed), list(FORMATS)[seed % len(FORMATS)]
        y = np.array(rows.columns["y"])
        due, ours = answers_due(features_due(rows), y), answers_of_ours(rows, kind, tmp_path)
        room = CLOSE * y.std() + 1e-13 * np.abs(y).max()
        worst = float(np.abs(ours - due).max())
        assert worst <= room, f"case {seed} ({kind}): {worst / y.std():.2e} of the deviation apart; {rows.schema}"
        formats[kind] += 1
        types.update(declared(rows))
        thirds[magnitude(rows)] += 1
    assert all(formats[kind] >= len(cases) / len(FORMATS) / 2 for kind in FORMATS)
    assert all(types[kind] >= len(cases) / len(TYPES) / 2 for kind in TYPES)
    assert all(thirds[third] >= len(cases) / 3 / 2 for third in range(3))
