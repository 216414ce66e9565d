"""Thousands of random pipelines: what ours learns of them in each format is what an independent ridge learns of the rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fuzz_cases import GAMMA, TYPES, Rows, answers_due, drawn, features_due, targets_due
from fuzz_writers import FORMATS, refused_due

from millrace.learners.analytic.ridge import RidgeConfig
from millrace.learners.protocol import Batch, Floats
from millrace.learners.table import LEARNERS
from millrace.streams.features.columns import Features
from millrace.streams.formats.avro import Registry
from millrace.streams.formats.contents import Contents
from millrace.streams.formats.json_rows import Rows as Decoded
from millrace.streams.journal.entries import Step
from millrace.streams.state.fold import Fold
from millrace.streams.state.microbatch import MicroBatches
from millrace.streams.state.stages import Owner, Stages

CASES = 5040  # in all, each in one format
PARTS = 12  # tests that share them
BATCH_ROWS = 64
READS = 3  # in which a worker gets them
CLOSE = 1e-6  # of the targets' deviation, or of what float64 can say of numbers that far from zero
# Kinds of values, of what is wrong with them, and of columns, each of which many cases have.
KINDS = (
    *("double", "float32", "integer", "boolean", "list of numbers", "list of integers", "list of booleans", "text"),
    *("boolean as category", "integer as category", "bytes as category", "number of units", "text of a time", "timestamp"),
    *("instant", "label number", "integer as number", "label integer", "integer as float", "label boolean", "text label"),
    *("integer as class", "boolean as class", "bytes as class"),
    *("infinity", "beyond int64", "bytes that are no text", "nested", "decimal", "bytes as number", "short row"),
    *("byte-order mark", "null", "string_view", "large_string", "large_binary", "dictionary"),
)


def read_of(rows: Rows, form: str, folder: Path, seed: int) -> tuple[Decoded, set[str]]:
    """The rows that ours takes of what another program wrote, and the types that it wrote; what it refuses is as it is due."""
    written = FORMATS[form](rows, folder, np.random.default_rng([seed, 1]))
    contents = Contents(rows.schema, 1 << 20, 64 << 20, registry=Registry("http://127.0.0.1:9", folder))
    decoded, refused = contents.decode(written.events)
    records, files = refused_due(rows, form)
    assert {record.event.offset + (record.row or 0): record.reason for record in refused} == records, (form, refused[:3])
    assert written.refused.keys() == files.keys(), (form, written.refused)
    assert all(files[piece] in why for piece, why in written.refused.items()), (form, written.refused)
    if rows.spoiled and rows.spoiled.piece is not None:
        assert all(rows.spoiled.column in record.detail for record in refused), (form, refused[:3])
    storage = {part for kind in written.storage for part in kind.replace("<", " ").replace("=", " ").replace(",", " ").split()}
    return decoded, storage | written.storage


def answers_of_ours(decoded: Decoded, rows: Rows, x: Floats) -> Floats:
    """What the ridge of a fold answers to x (n, d), the learned rows as they are due, once it has read all rows: (n, C)."""
    algorithm = LEARNERS["ridge"]
    config = RidgeConfig(task=rows.schema.label.task, gamma=GAMMA, solve_rows=len(x))
    stages = Stages(Features(rows.schema, algorithm.scaling(config)), MicroBatches(BATCH_ROWS, 1000))
    fold = Fold(rows.schema, lambda: algorithm.learner(config, rows.schema.width, 0), stages, {}, Owner("main", "main"))
    for seq in range(READS):
        read = decoded.only(np.arange(len(decoded))[seq * len(decoded) // READS : (seq + 1) * len(decoded) // READS])
        fold.step(Step(branch="main", seq=seq + 1, epoch=1, reads=[], clock_ms=1000 if seq + 1 < READS else 9999), [read])
    assert (fold.counts.learned, fold.counts.passed) == (len(x), len(decoded) - len(x))
    return fold.learner.servable().predict_many(Batch(x))


def thirds_of(rows: Rows) -> Iterator[int]:
    """Which third of the magnitudes from 1e-12 to 1e36 the widest number of each field of numbers is in."""
    for field in rows.schema.fields:
        if field.type == "numeric":
            meant = [rows.columns[field.name].meant[at] for at in rows.learned]
            widest = np.abs([cell for cell in meant if cell is not None] or [0.0]).max()
            yield int(np.clip((math.log10(max(widest, 1e-12)) + 12) // 16, 0, 2))


def declared(rows: Rows) -> set[str]:
    """The types of the fields, as TYPES names them."""
    kinds = set()
    for field in rows.schema.fields:
        rule = {"reject": "", "category": ", category"}.get(field.missing, f", {field.missing}")
        rule = ", grow" if field.categories == "grow" and not rule else rule
        kinds.add("list" if field.size > 1 else f"{field.type}{rule}")
    return kinds


@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_learned_of_random_rows_is_what_an_independent_ridge_learns(part: int, tmp_path: Path) -> None:
    """Whatever the schema, the format, the kinds of values, the magnitude and the shape; what cannot be meant is refused."""
    formats, types, thirds, kinds = Counter[str](), Counter[str](), Counter[int](), Counter[str]()
    cases = range(part * CASES // PARTS, (part + 1) * CASES // PARTS)
    for seed in cases:
        form = list(FORMATS)[seed % len(FORMATS)]
        rows = drawn(seed, form)
        y, x = targets_due(rows), features_due(rows)
        decoded, storage = read_of(rows, form, tmp_path, seed)
        due, ours = answers_due(x, y), answers_of_ours(decoded, rows, x)
        room = CLOSE * y.std() + 1e-13 * np.abs(y).max()
        worst = float(np.abs(ours - due).max())
        assert worst <= room, f"case {seed} ({form}): {worst / y.std():.2e} of the deviation apart; {rows.schema}"
        formats[form] += 1
        types.update(declared(rows))
        thirds.update(thirds_of(rows))
        kinds.update(rows.kinds | storage)
    assert min(formats[form] for form in FORMATS) >= len(cases) // len(FORMATS)
    assert min(types[kind] for kind in TYPES) >= len(cases) // len(TYPES)
    assert min(thirds[third] for third in range(3)) >= len(cases) // 5
    assert min(kinds[kind] for kind in KINDS) >= 3
