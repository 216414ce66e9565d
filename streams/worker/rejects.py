"""What a worker refused since it began: how many records of which reason, and whether they are too many to go on."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from millrace.streams.errors import TooManyRejectedError
from millrace.streams.formats.json_rows import Refused, Rows
from millrace.streams.journal.entries import Rejected
from millrace.streams.labels.served import Served
from millrace.streams.records import Read
from millrace.streams.source import Position
from millrace.streams.worker.config import WorkerConfig

Refusals = Sequence[tuple[str, Refused]]  # partition, and what was wrong


def entries_of(refused: Refusals) -> list[Rejected]:
    """As a step of the journal has them: one a row, and one of a message that was refused as a whole."""
    return [(tp, refusal.event.offset, refusal.row, refusal.reason) for tp, refusal in refused]


def rows_of(refused: Refusals) -> int:
    """How many rows were refused."""
    return sum(refusal.rows for _, refusal in refused)


class Rejects:
    """Counts what is refused, step by step, and stops the worker where its share among the newest records is too high."""

    def __init__(self, config: WorkerConfig, topic: str) -> None:
        """``topic``: where the refused records are kept."""
        self.by_reason = Counter[str]()
        self.first: dict[str, str] = {}  # reason -> the first record of it: where it lies, and what was wrong
        self._config = config
        self._topic = topic
        self._window: deque[tuple[int, int]] = deque()  # records and rejected of the newest steps

    def note(self, refused: Refusals) -> None:
        """Count records that were refused."""
        for tp, refusal in refused:
            self.by_reason[refusal.reason] += refusal.rows
            self.first.setdefault(refusal.reason, f"{tp} offset {refusal.event.offset}: {refusal.detail}")

    def refuse_too_many(self, read: int, refused: Refusals, passed_by: Position) -> None:
        """Take in a step that read so many records; those below ``passed_by`` are past what an operator has let pass.

        Raises: TooManyRejectedError where more than the share that the pipeline allows was refused.
        """
        refused = [(tp, refusal) for tp, refusal in refused if refusal.event.offset >= passed_by.get(tp, 0)]
        self._window.append((read, rows_of(refused)))
        records = sum(count for count, _ in self._window)
        while records - self._window[0][0] >= self._config.window_rows:
            records -= self._window.popleft()[0]
        rejected = sum(count for _, count in self._window)
        if rejected > self._config.stop_share * max(records, self._config.window_rows):
            raise TooManyRejectedError(self._stopped(rejected, records, refused))

    def _stopped(self, rejected: int, records: int, refused: Refusals) -> str:
        reasons = sorted({refusal.reason for _, refusal in refused})
        tp, first = refused[0] if refused else ("", None)
        example = f", such as {tp} offset {first.event.offset}: {first.detail}" if first else ""
        return (
            f"{rejected} of the last {records} records were refused ({', '.join(reasons)}{example}). They are kept in "
            f"topic {self._topic}, nothing is lost, and everything else was learned. Mend the producer or the pipeline's "
            "fields, or raise worker.stop_share, and start again. To go past those that are in the log by now: `millrace run "
            "--past-rejects --reason WHY`."
        )


def describe_reasons(by_reason: Mapping[str, int]) -> str:
    """Reasons and how often each, the commonest first.

    >>> describe_reasons({"oversized": 1, "wrong-type": 20})
    'wrong-type 20, oversized 1'
    """
    return ", ".join(f"{reason} {count}" for reason, count in sorted(by_reason.items(), key=lambda pair: (-pair[1], pair[0])))


@dataclass(frozen=True, slots=True)
class Checked:
    """Reads, decoded: the rows of each, and what was refused."""

    reads: list[Read]
    rows: list[Rows | Served]
    refused: list[tuple[str, Refused]]  # partition, and what was wrong

    @property
    def rows_read(self) -> int:
        """Rows, those left out and those refused included."""
        return sum(len(piece) + piece.left_out for piece in self.rows) + rows_of(self.refused)
