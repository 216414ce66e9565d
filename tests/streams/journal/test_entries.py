"""Journal and ledger entries as bytes: sealed, so that no flipped byte is ever read as a decision."""

from __future__ import annotations

import msgspec
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from millrace.streams.checksummed import seal
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import End, Entry, Fork, Host, Mark, Open, Parent, StateName, Step, decode_entry
from millrace.streams.journal.exclusions import Header, Key, OffsetRange, Time
from millrace.streams.journal.ledger import Certificate, Ledger, Serve, Target
from millrace.streams.source import Topic
from millrace.streams.stream import ListStream

HOST = Host("x86 é", "openblas", 2, None, "0.1.0")
FORK = Fork(
    branch="main",
    seq=1,
    epoch=0,
    parent=Parent("other", 7, "ab" * 32),
    learner_from="cd",
    positions={"t:0": 3, 't "quoted":1': 0},
    topics={"t": Topic("id", 2)},
    learner="ridge",
    learner_revision=1,
    config_sha256="c",
    features_sha256="f",
    seed=7,
    exclude=[OffsetRange("t:0", 1, 3), Time(5, 9), Header("producer", "till-7"), Key("ab" * 32)],
)
OPEN = Open(branch="main", seq=2, epoch=1, after_seq=1, restored=StateName(1, "ef"), host=HOST, writer="w")
STEP = Step(branch="main", seq=3, epoch=1, reads=[("t:0", 3, 9, 6, 123)], clock_ms=5, rejected=[("t:0", 4, None, "oversized")])
MARK = Mark(branch="main", seq=4, epoch=1, state_seq=3, state_sha256="01", checkpoint=None, version="main.3")
END = End(branch="main", seq=5, epoch=2, cause="take-over", successor="replay-1")
ENTRIES = [FORK, OPEN, STEP, MARK, END]
SERVE = Serve(who="me", why="why", when_ms=5, endpoint="default", before=None, to=Target(follow="main"))
CERTIFICATE = Certificate(
    who="me", why="why", when_ms=5, version="main.3", base="fork", state_sha256="5", verdict="equal", host=HOST
)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    """And the bytes are JSON that any tool can read, with its kind and checksum."""
    raw = seal(entry)
    assert decode_entry(raw, "here") == entry
    read = msgspec.json.decode(raw)
    assert read["kind"] == type(entry).__name__.lower() and list(read)[-1] == "crc32c"


@pytest.mark.parametrize("sealed", [*ENTRIES, SERVE, CERTIFICATE], ids=lambda entry: type(entry).__name__)
def test_every_flipped_bit_and_every_cut_of_a_sealed_entry_is_refused(sealed: msgspec.Struct) -> None:
    """Naming where it lies."""
    raw = seal(sealed)
    flips = [raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :] for at in range(len(raw)) for bit in range(8)]
    for damaged in [*flips, *(raw[:end] for end in range(len(raw))), raw + b" ", raw + raw, b" " + raw]:
        if isinstance(sealed, Serve | Certificate):
            stream = ListStream()
            stream.send(damaged).offset()
            with pytest.raises(DamageError, match="ledger.sqlite: the ledger entry at offset 0 is damaged"):
                Ledger("ledger.sqlite").follow(stream)
        else:
            with pytest.raises(DamageError, match="here is damaged: .* Restore it from a copy"):
                decode_entry(damaged, "here")


@given(st.sampled_from(ENTRIES), st.data())
def test_any_byte_replaced_by_any_other_is_refused(entry: Entry, data: st.DataObject) -> None:
    """Not only single bits."""
    raw = seal(entry)
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[at]))
    with pytest.raises(DamageError):
        decode_entry(raw[:at] + bytes([byte]) + raw[at + 1 :], "here")


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
def test_any_other_bytes_are_refused(raw: bytes) -> None:
    """Whatever lies where an entry should lie."""
    for value in (raw, raw + b',"crc32c":' + str(crc32c(raw + b"}")).encode() + b"}"):
        with pytest.raises(DamageError):
            decode_entry(value, "here")


def sealed_json(body: bytes) -> bytes:
    """``body`` with the checksum that makes it sound."""
    return body[:-1] + b',"crc32c":%d}' % crc32c(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind":"act","branch":"main","seq":2,"epoch":1,"op":"reset"}',
        b'{"branch":"main","seq":2,"epoch":1}',
        b'{"kind":"mark","branch":"main","seq":2,"epoch":1}',
        b'{"kind":"mark","branch":"main","seq":4,"epoch":1,"state_seq":3,"state_sha256":"0","checkpoint":null,"new":1}',
        b'{"kind":"mark","branch":"main","seq":"4","epoch":1,"state_seq":3,"state_sha256":"0","checkpoint":null}',
        b"{}",
        b"{not json}",
        b'{"kind":"\xff"}',
    ],
)
def test_a_sound_entry_that_this_release_does_not_know_names_what_to_do(body: bytes) -> None:
    """It is another release's, not damage: no copy would mend it, and skipping it would fold another state."""
    with pytest.raises(DamageError, match="here was written by another release .* Use the release that wrote it"):
        decode_entry(sealed_json(body), "here")


def test_an_entry_cannot_hold_a_seal_that_ends_it_early() -> None:
    """A name that looks like the seal is only a name."""
    tricky = msgspec.structs.replace(MARK, version='x","crc32c":123}', state_sha256=',"crc32c":')
    assert decode_entry(seal(tricky), "here") == tricky
