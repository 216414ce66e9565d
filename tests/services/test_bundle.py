"""Bundles: equal answers to the worker's, and nothing damaged is ever used."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import MIXED, encoded, events, mixed_rows
from served_bundles import NUMBERS, mixed_parts, numbers_parts

from millrace.learners.analytic.ridge import RidgeConfig
from millrace.learners.linear.servable import LinearServable
from millrace.learners.memory.config import MemoryConfig, Remembering
from millrace.learners.protocol import Batch
from millrace.learners.table import algorithm_of
from millrace.services.errors import NotReadyError
from millrace.services.pipeline.bundle import Parts, bundle_bytes, open_bundle, open_parts
from millrace.streams.errors import DamageError
from millrace.streams.features.columns import Features
from millrace.streams.formats.json_rows import Codec
from millrace.streams.parts import pack, sha256, unpack


@given(st.integers(1, 9), st.integers(0, 10_000))
def test_a_bundle_answers_what_the_worker_would_have_scored(rows: int, seed: int) -> None:
    """Bit for bit, on rows of known categories, whatever stands beside them; and nothing changes by being asked."""
    parts = mixed_parts()
    bundle = open_parts(parts, MIXED)
    asked, refused = Codec(MIXED, 4096).decode(events([encoded(row) for row in mixed_rows(rows, seed)]))
    known = [row for row in range(len(asked)) if asked.columns[6][row] in {None, *parts.features["slots"]["site"]}]
    columns = [column[known] for column in asked.columns]
    stage = Features(MIXED)
    stage.load(parts.features)
    x, names = stage.encoded(columns)
    expected = LinearServable.from_arrays(parts.serve).predict_many(stage.answer(Batch(x, names=names)))
    answer = bundle.predict(columns)
    assert not refused and answer.scores.tobytes() == expected.tobytes() == bundle.predict(columns).scores.tobytes()
    assert answer.labels == tuple(bundle.classes[at] for at in expected.argmax(axis=1))


def test_the_same_state_is_the_same_bytes() -> None:
    """So its sha256 names it on every machine."""
    assert bundle_bytes(mixed_parts(), MIXED) == bundle_bytes(mixed_parts(), MIXED)


def test_a_flipped_byte_is_refused() -> None:
    """Wherever it lies."""
    blob = bundle_bytes(numbers_parts(), NUMBERS)
    for at in range(0, len(blob), 17):
        with pytest.raises(DamageError):
            open_bundle(blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :], sha256(blob), NUMBERS)


@given(st.data())
def test_bytes_that_were_never_published_are_refused_with_words_or_harmless(data: st.DataObject) -> None:
    """Even where their sha256 is right: changed or cut bytes give a DamageError, or weights that are finite."""
    blob = bytearray(bundle_bytes(numbers_parts(), NUMBERS))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(blob[: data.draw(st.integers(0, len(blob)) | st.just(len(blob)))])
    with suppress(DamageError):
        answer = open_bundle(raw, sha256(raw), NUMBERS).predict([np.ones((1, 1)), np.ones((1, 2))])
        assert np.isfinite(answer.scores).all()


@pytest.mark.parametrize("strength", [0.0, 0.9])
@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("exact", "memory.labels"),
        ("exact", "memory.weight"),
        ("sketch", "memory.cells"),
        ("sketch", "mean"),
    ],
)
def test_a_memory_whose_arrays_do_not_fit_each_other_is_refused(form: str, name: str, strength: float) -> None:
    """Also one with lambda 0, whose scores do not depend on it: its errors are recorded with each answer."""
    parts = remembered_parts(form, strength)
    assert open_parts(parts, NUMBERS).outputs == 2
    blob = bundle_bytes(parts, NUMBERS)
    state = unpack(blob, "here")
    state[f"serve.{name}"] = state[f"serve.{name}"][:2]
    damaged = pack(state)
    with pytest.raises(DamageError):
        open_bundle(damaged, sha256(damaged), NUMBERS)


def remembered_parts(form: str, strength: float) -> Parts:
    """Of a ridge with an error memory around it."""
    config = Remembering(RidgeConfig(solve_rows=8), MemoryConfig(form=form, warm_up_rows=16, strength=strength))  # type: ignore[arg-type]
    learner = algorithm_of("ridge+memory").learner(config, NUMBERS.width, 0)
    x = np.random.default_rng(0).normal(size=(64, NUMBERS.width))
    learner.learn_many(Batch(x, np.where(x[:, 0] > 0.0, "yes", "no").astype(object)))
    return replace(numbers_parts(), kind="ridge+memory", serve=learner.servable().arrays())


def test_weights_that_are_not_finite_or_of_other_fields_are_refused() -> None:
    """By name."""
    parts = numbers_parts()
    weights = np.array(parts.serve["weights"])
    weights[0, 0] = np.nan
    with pytest.raises(DamageError, match="weights holds a number that is not finite"):
        open_parts(replace(parts, serve=parts.serve | {"weights": weights}), NUMBERS)
    with pytest.raises(DamageError, match="other fields"):
        open_bundle(bundle_bytes(parts, NUMBERS), sha256(bundle_bytes(parts, NUMBERS)), MIXED)


def test_a_state_that_has_learned_nothing_says_so() -> None:
    """It has no class to answer with."""
    bundle = open_parts(numbers_parts(labels=False), NUMBERS)
    with pytest.raises(NotReadyError, match="has not learned a label yet"):
        bundle.predict([np.zeros((1, 1)), np.zeros((1, 2))])
