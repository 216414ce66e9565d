"""What the public surface gives back: small frozen records, as ``millrace.services.api`` names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Corrected, Floats
from millrace.streams.branch.verify import Report
from millrace.streams.labels.answered import corrections_of
from millrace.streams.labels.served import Prediction


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a state answers to some rows, and which state that is.

    >>> from millrace.services.api import example_pipeline
    >>> even = example_pipeline()
    >>> answers = even.predict([{"x": 1}])
    >>> answers.labels, answers.classes, answers.scores.shape, answers.version
    (('false',), ('true', 'false'), (1, 2), 'main.3')
    """

    scores: Floats  # (n, C), a column a class; for regression (n, 1), in the label's unit
    labels: tuple[str, ...]  # (n,) the class with the highest score; empty for regression
    classes: tuple[str, ...]  # (C,) in the order of the columns; empty for regression
    branch: str
    epoch: int
    seq: int  # the journal entry up to which the branch was learned
    version: str | None  # None: a state that no version names
    _rows: tuple[bytes, ...] = field(repr=False)  # as JSON
    corrected: Corrected | None = field(default=None, repr=False)  # what scores are made of, where a memory corrects them
    far_out: tuple[str, ...] = ()  # fields in which a row has a value far outside everything learned so far

    def served(self, ids: Sequence[str]) -> list[Prediction]:
        """The answers as records for ``append_served``, under the ids that late labels will name.

        >>> from millrace.services.api import example_pipeline
        >>> answers = example_pipeline().predict([{"x": 1}])
        >>> [record.id for record in answers.served(["question 1"])]
        ['question 1']

        Raises: BadInputError where there is not one id a row.
        """
        if len(ids) != len(self._rows):
            raise BadInputError(f"ids: there are {len(ids)} for {len(self._rows)} rows. Give each row one of its own.")
        place = (self.branch, self.epoch, self.seq, self.classes)
        corrections = corrections_of(self.corrected, len(ids))
        return [
            Prediction(name, msgspec.Raw(row), *place, tuple(scores), base=base, error=error)
            for name, row, scores, (base, error) in zip(ids, self._rows, self.scores.tolist(), corrections, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Scores:
    """How good the answers were: each row was answered just before it was learned.

    >>> from millrace.services.api import example_pipeline
    >>> scores = example_pipeline().scores()
    >>> scores.rows, scores.accuracy == scores.values["accuracy"], sorted(scores.recall)
    (100, True, ['false', 'true'])
    """

    rows: int  # that were answered and learned
    values: dict[str, float | None]  # means over the rows, by the names of `millrace status`; ``served_...``: as served
    recall: dict[str, float]  # label -> share of its rows that was answered right; at most the 20 lowest

    @property
    def accuracy(self) -> float | None:
        """The share of rows that was answered right, 0 to 1; None for regression and before the first row."""
        return self.values.get("accuracy")


@dataclass(frozen=True, slots=True)
class Status:
    """Where a branch is, and where every record went.

    >>> from millrace.services.api import example_pipeline
    >>> status = example_pipeline().status()
    >>> status.learned, status.rejected, status.lag_rows, status.version == status.facts["version"]
    (100, 0, 0, True)
    """

    pipeline: str
    branch: str
    epoch: int
    seq: int
    version: str | None  # the newest
    lag_rows: int  # records of the log that are not read yet
    records: int | None  # read; None: the branch lets nothing out yet
    learned: int | None
    passed: int | None  # read, and without a label
    rejected: int | None  # dead letters
    waiting: int | None  # read, and learned with the next batch or when their label comes
    facts: dict[str, Any]  # all that `millrace status` prints, by its names

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Status:
        """The facts of `millrace status`."""
        values: dict[str, Any] = {field.name: facts.get(field.name) for field in fields(cls)}
        return cls(**values | {"facts": facts})


@dataclass(frozen=True, slots=True)
class Version:
    """A state that is kept, can be verified and gone back to.

    >>> from millrace.services.api import example_pipeline
    >>> version = example_pipeline().versions()[-1]
    >>> version.version, version.learned, version.parts, version.verified
    ('main.3', 100, 'whole', 'pending')
    """

    version: str
    branch: str
    seq: int
    epoch: int
    learned: int | None  # rows; None: it was let go, or is damaged
    bytes: int | None
    parts: str  # "whole", "let go", or what is wrong with them
    verified: str  # "pending", or the verdict and what it was folded from
    aliases: tuple[str, ...]
    served_by: tuple[str, ...]  # endpoints

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Version:
        """A row of `millrace versions`."""
        lists = {name: tuple(row[name].split(", ")) if row[name] else () for name in ("aliases", "served_by")}
        return cls(**{**row, **lists})


@dataclass(frozen=True, slots=True)
class Proof:
    """What was folded again from the log and came out the same.

    >>> from millrace.services.api import example_pipeline
    >>> [proof] = example_pipeline().verify()
    >>> proof.base, proof.proved, proof.unproved
    ('fork', ('main.3',), 0)
    """

    branch: str
    base: str  # where folding began
    entries: int
    records: int
    state_seq: int
    state_sha256: str
    proved: tuple[str, ...]  # versions, and marks between them as "seq N"
    unproved: int  # marks that nothing is left to compare with

    @classmethod
    def of(cls, report: Report) -> Proof:
        """What `millrace verify` shows of a report without findings."""
        proved = tuple(mark.version or f"seq {mark.state_seq}" for mark in report.proved)
        place = (report.branch, report.base, report.entries, report.records, report.state_seq, report.state_sha256)
        return cls(*place, proved, len(report.unproved))


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that stands in the ledger, and what it changed.

    >>> from millrace.services.api import example_pipeline
    >>> example_pipeline().promote("newest", "best so far")
    Decided(before='nothing', after='version main.3', reason='best so far')
    """

    before: str  # "version main.43", "the newest of main" or "nothing"
    after: str
    reason: str
