"""What a replica answers from: an immutable bundle of a state's feature tables and what its learner serves, with its name.

A bundle is made from bytes: those that the trainer publishes, or those packed here from a checkpoint's parts. Nothing is
unpickled. A bundle whose bytes, numbers or golden rows are wrong is refused, and the one before goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import msgspec
import numpy as np

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Batch, Corrected, Corrects, Floats, Servable, Value
from millrace.learners.table import algorithm_of
from millrace.services.errors import NotReadyError
from millrace.streams.entity.entities import Entities
from millrace.streams.errors import DamageError
from millrace.streams.features.columns import Features
from millrace.streams.journal.entries import Mark
from millrace.streams.parts import pack, sha256, unpack
from millrace.streams.schema import Schema

GOLDEN_ROWS = 4  # answered again before a bundle is used
GOLDEN_SEED = 20261121
AGAIN = "Restore the state from a copy, or serve another version with `millrace rollback`."


class Identity(msgspec.Struct, frozen=True):
    """Which state answered."""

    branch: str
    epoch: int
    seq: int
    version: str | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Its place within the branch; a replica that follows never goes to a lower one."""
        return self.epoch, self.seq

    @property
    def name(self) -> str:
        """The version, else ``branch.seq``."""
        return self.version or f"{self.branch}.{self.seq}"


def identity_of(mark: Mark) -> Identity:
    """Of the state that a mark names."""
    return Identity(mark.branch, mark.epoch, mark.state_seq, mark.version)


@dataclass(frozen=True, slots=True)
class Parts:
    """What answering needs of a state."""

    identity: Identity
    as_of_ms: int  # the state took in everything that the log had by then
    kind: str  # of the learner
    features: dict[str, Value]  # the tables of the feature stage
    serve: dict[str, Value]  # the arrays of the learner's servable
    windows: dict[str, Value] | None = None  # of entities, as much as looking needs; None: rows are nobody's


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores of some rows."""

    scores: Floats  # (n, C), or values (n, k) for regression
    labels: tuple[str, ...]  # (n,) the class with the highest score; empty for regression
    made_of: Callable[[], Corrected] | None = None  # what the scores are made of, where a memory corrects them
    past: Floats | None = None  # (n, p) fields that windows gave, NaN where there was no event; None: rows are nobody's
    far_out: Mapping[str, Array] = field(default_factory=dict)  # by field, rows (n,) with a value far outside what was learned


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The names of the score columns as answers carry them: a JSON list as a text, since a parameter is no list.

    Made once, for every answer has it.
    """

    text: str
    quoted: msgspec.Raw  # the same as JSON has a text


def class_names(classes: Sequence[str]) -> ClassNames | None:
    """Of score columns, or none where they are not classes.

    >>> class_names(("ham", "spam")).text
    '["ham","spam"]'
    """
    if not classes:
        return None
    text = msgspec.json.encode(list(classes)).decode()
    return ClassNames(text, msgspec.Raw(msgspec.json.encode(text)))


class Held(Protocol):
    """What answers now, whatever it answers."""

    @property
    def identity(self) -> Identity:
        """Which state it is."""

    @property
    def schema(self) -> Schema:
        """What it was learned with."""

    @property
    def outputs(self) -> int:
        """What it gives for each row; 0: nothing has been learned yet."""


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """An immutable state that answers; made by ``open_bundle``."""

    identity: Identity
    as_of_ms: int
    sha256: str
    schema: Schema
    outputs: int  # score columns; 0: nothing has been learned yet
    _features: Features
    _servable: Servable
    _memory: Corrects | None  # the servable, where a memory corrects it
    _entities: Entities | None = None  # whose windows are those of the state
    made_ms: int = 0  # when it was published, or the journal's clock at its mark; nothing later is in its windows
    class_names: ClassNames | None = None  # None: the score columns are not classes, or there are none yet

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the score columns; empty for regression."""
        return self._servable.classes

    def predict(self, columns: Sequence[Array], now_ms: int | None = None) -> Answer:
        """The answers to rows, one column a field, as the codec gives them. Pure but for the clock, where rows are someone's.

        ``now_ms``: when a row was that does not say so itself; None: by the wall clock.

        Raises: NotReadyError while no row has been learned.
        """
        if not self.outputs:
            raise NotReadyError(f"State {self.identity.name} has not learned a label yet. Ask again when it has.")
        past = None
        if self._entities is not None:
            past = self._entities.look(columns, time.time_ns() // 1_000_000 if now_ms is None else now_ms)
        x, names = self._features.encoded(columns, past=past)
        scores, made_of = self._scored(self._features.answer(Batch(x, names=names)))
        best = scores.argmax(axis=1).tolist() if self.schema.label.task == "classify" else []
        labels = tuple(self.classes[at] for at in best)
        return Answer(scores, labels, made_of, past, self._far_out(x))

    def _far_out(self, x: Floats) -> dict[str, Array]:
        """Of fields that rows bring. What a window gave would tell whoever names an entity of its history."""
        made = {field.name for field in self.schema.past}
        return {name: rows for name, rows in self._features.far_out(x).items() if name not in made}

    def _scored(self, batch: Batch) -> tuple[Floats, Callable[[], Corrected] | None]:
        """Scores, and what they are made of; a memory that corrects nothing is looked at only by who wants to know."""
        if self._memory is None:
            return self._servable.predict_many(batch), None
        if self._memory.share == 0.0:
            return self._servable.predict_many(batch), partial(self._memory.corrected, batch)
        corrected = self._memory.corrected(batch)
        return corrected.scores, lambda: corrected

    def age_ms(self, now_ms: int) -> int:
        """For how long, at most, the log has had something that is not in this state."""
        return max(0, now_ms - self.as_of_ms)

    def state_age_ms(self, now_ms: int) -> int:
        """How old the state is, and so its windows, whether or not anything has come since."""
        return max(0, now_ms - self.made_ms)

    def confirmed(self, as_of_ms: int) -> Bundle:
        """The same bundle, known to have taken in everything that the log had by a later time."""
        return replace(self, as_of_ms=max(self.as_of_ms, as_of_ms))


def bundle_bytes(parts: Parts, schema: Schema) -> bytes:
    """The bytes that ``open_bundle`` reads, golden rows with their answers included.

    Raises: BadInputError for a draft, which answers no rows.
    """
    if algorithm_of(parts.kind).distils:
        raise BadInputError(
            f"Version {parts.identity.name} is a draft and answers no rows; `millrace export` writes it for transformers."
        )
    rows = np.random.default_rng(GOLDEN_SEED).standard_normal((GOLDEN_ROWS, schema.width))
    servable = algorithm_of(parts.kind).servable(dict(parts.serve))
    state: dict[str, Value] = {
        "identity": msgspec.to_builtins(parts.identity),
        "as_of_ms": parts.as_of_ms,
        "kind": parts.kind,
        "schema": sha256(schema.declared),
        "golden.rows": rows,
        "golden.scores": servable.predict_many(Batch(rows)),
    }
    tables = {"features": parts.features, "serve": parts.serve, "windows": parts.windows or {}}
    return pack(state | {f"{table}.{name}": value for table, part in tables.items() for name, value in part.items()})


def open_bundle(blob: bytes, expected: str, schema: Schema) -> Bundle:
    """The bundle in ``blob``, whose sha256 must be ``expected``.

    Raises: DamageError where bytes, numbers, fields or golden rows are not what they should be.
    """
    if sha256(blob) != expected:
        raise DamageError(f"Published weights are not what was published: their sha256 is not {expected}. {AGAIN}")
    state = unpack(blob, "published weights")
    try:
        identity = msgspec.convert(state["identity"], Identity)
        if state["schema"] != sha256(schema.declared):
            raise DamageError(
                f"State {identity.name} was learned with other fields than this pipeline file has. Use the file of then."
            )
        features = Features(schema)
        features.load(state.get("features") or _table(state, "features."))  # in one piece where an older release wrote it
        serve = _table(state, "serve.")
        _refuse_not_finite(serve, identity)
        algorithm = algorithm_of(state["kind"])
        servable = algorithm.servable(serve)
        _try_golden(servable, state["golden.rows"], state["golden.scores"], identity, algorithm.agreement)
        entities = None if schema.entity is None else Entities(schema)
        if entities is not None:
            entities.load_answering(_table(state, "windows."))
        outputs, memory = state["golden.scores"].shape[1], servable if isinstance(servable, Corrects) else None
        made_ms, names = int(state["as_of_ms"]), class_names(servable.classes)
        return Bundle(identity, made_ms, expected, schema, outputs, features, servable, memory, entities, made_ms, names)
    except (BadInputError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise DamageError(
            f"Published weights cannot be read by this release ({error!r}). Use the one that wrote them."
        ) from error


def open_parts(parts: Parts, schema: Schema) -> Bundle:
    """A bundle from a checkpoint's parts, checked as published bytes are. Raises: DamageError."""
    blob = bundle_bytes(parts, schema)
    return open_bundle(blob, sha256(blob), schema)


def _table(state: dict[str, Value], prefix: str) -> dict[str, Value]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _refuse_not_finite(serve: dict[str, Value], identity: Identity) -> None:
    for name, value in serve.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise DamageError(f"State {identity.name}: {name} holds a number that is not finite. {AGAIN}")


def _try_golden(servable: Servable, rows: Floats, scores: Floats, identity: Identity, agreement: float) -> None:
    asked = Batch(rows)
    answers = servable.corrected(asked).scores if isinstance(servable, Corrects) else servable.predict_many(asked)
    largest = float(np.abs(scores).max(initial=1.0))
    if answers.shape != scores.shape or not np.allclose(answers, scores, rtol=0.0, atol=agreement * largest):
        raise DamageError(
            f"State {identity.name} does not give its golden rows the answers that it was published with. {AGAIN}"
        )
