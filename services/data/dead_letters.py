"""`millrace dead-letters`: what could not be read, why, and how it is sent once more.

A letter may lie there more than once (after a crash); topic, partition and offset say which record it is of. To redrive is to
append a new event with the original key and value, at the end of the topic it was in. The ledger says first that it is done, so
of two operators only one sends a letter. Where a process died in between, ``again`` sends what the ledger says was sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from millrace.learners.errors import BadInputError
from millrace.services.errors import NotCountedError
from millrace.services.pipeline.instance import Instance
from millrace.services.user import user_name
from millrace.streams.branch.outputs import dead_letter_topic
from millrace.streams.journal.ledger import Redrive, append_decision
from millrace.streams.records import Event, Headers, Record, decode_headers, encode_headers, tp_name

OURS = "millrace."  # how the headers begin that say why it is a dead letter
REDRIVEN = "millrace.redriven"  # on the new event: the offset of its letter
READ_ROWS = 1000  # records a read


@dataclass(frozen=True, slots=True)
class Letter:
    """A record that could not be read, as the dead-letter topic has it."""

    offset: int  # in the dead-letter topic
    event: Event
    headers: Headers  # the record's own
    why: dict[str, str]  # reason, detail, topic, partition, offset, timestamp_ms; row, where it was one of several in a message
    redriven: bool

    @property
    def row(self) -> dict[str, Any]:
        """As a line to show."""
        record = f"{self.why.get('topic', '')}:{self.why.get('partition', '')} offset {self.why.get('offset', '')}"
        record += f" row {self.why['row']}" if "row" in self.why else ""
        return {
            "letter": self.offset,
            "record": record,
            "reason": self.why.get("reason", ""),
            "detail": self.why.get("detail", ""),
            "redriven": self.redriven,
        }

    @property
    def content(self) -> list[dict[str, Any]]:
        """All of it, line by line; bytes that are no text are shown as such."""
        facts: dict[str, Any] = self.row | {"timestamp_ms": self.why.get("timestamp_ms", "")}
        facts["key"] = _text(self.event.key)
        facts |= {f"header {name}": _text(value) for name, value in self.headers}
        return [{"what": name, "value": value} for name, value in (facts | {"value": _text(self.event.value)}).items()]


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="backslashreplace")


def letters(instance: Instance, reason: str | None = None) -> Iterator[Letter]:
    """Each record's letter once, oldest first; of one reason, where one is named."""
    topic = dead_letter_topic(instance.loaded.pipeline.name)
    source, tp = instance.source([topic]), tp_name(topic, 0)
    redriven, yielded = instance.ledger().redriven, set[tuple[str | None, ...]]()
    low, high = source.bounds()[tp]
    for begin in range(low, high, READ_ROWS):
        for event in source.read(tp, begin, min(begin + READ_ROWS, high)).events:
            letter = _letter(event, redriven)
            record = tuple(letter.why.get(name) for name in ("topic", "partition", "offset", "row"))
            if record not in yielded and reason in (None, letter.why.get("reason")):
                yielded.add(record)
                yield letter


def _letter(event: Event, redriven: set[int]) -> Letter:
    headers = decode_headers(event.headers)
    reasons = {name.removeprefix(OURS): value.decode() for name, value in headers if name.startswith(OURS)}
    own_headers = tuple((name, value) for name, value in headers if not name.startswith(OURS))
    return Letter(event.offset, event, own_headers, reasons, event.offset in redriven)


def letter(instance: Instance, offset: int) -> Letter:
    """One of them. Raises: BadInputError where there is none."""
    return chosen(instance, [offset], None, again=True)[0]


def chosen(instance: Instance, offsets: Sequence[int], reason: str | None, again: bool) -> list[Letter]:
    """Those to be sent, each once: the ones named, or all of a reason; sent ones only with ``again``.

    Raises: BadInputError where a named one is not there.
    """
    by_offset = {letter.offset: letter for letter in letters(instance, reason)}
    if missing := [offset for offset in offsets if offset not in by_offset]:
        raise BadInputError(f"There is no dead letter {missing[0]}; `millrace dead-letters list` shows those there are.")
    return [by_offset[offset] for offset in dict.fromkeys(offsets or by_offset) if again or not by_offset[offset].redriven]


def redrive(instance: Instance, chosen_letters: Sequence[Letter], reason: str, again: bool) -> None:
    """Append each as a new event. Raises: NotCountedError where another hand has sent one of them meanwhile."""
    if not chosen_letters:
        return
    user, when_ms = user_name(), time.time_ns() // 1_000_000
    decision = Redrive(who=user, why=reason, when_ms=when_ms, offsets=[letter.offset for letter in chosen_letters], again=again)
    append_decision(instance.ledger_stream(), decision)
    if decision not in instance.ledger().counted:
        raise NotCountedError(
            "This was written and does not count: another hand has sent one of these dead letters meanwhile. Look at "
            "`millrace dead-letters list PIPELINE`."
        )
    log = instance.log()
    for topic in dict.fromkeys(letter.why["topic"] for letter in chosen_letters):
        log.append(topic, [_event(letter) for letter in chosen_letters if letter.why["topic"] == topic])


def _event(letter: Letter) -> Record:
    headers = encode_headers((*letter.headers, (REDRIVEN, str(letter.offset).encode())))
    return Record(letter.event.value, letter.event.key, headers)
