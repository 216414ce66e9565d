"""The codec against everything a producer can get wrong: fuzzed rows, and keys that stand twice."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pipelines import MIXED, ROW, encoded, event, events, mixed_rows

from millrace.streams.branch.outputs import dead_letter
from millrace.streams.formats.json_rows import Codec
from millrace.streams.formats.meaning import REASONS

CODEC = Codec(MIXED, max_bytes=4096)
GOOD = encoded(ROW)
OPTIONAL = ["heat", "wind", "site", "who", "label", "weight"]


def reason(value: bytes) -> str:
    """Why ``value`` alone is refused; "good" if it is not."""
    _, refused = CODEC.decode([event(value)])
    return refused[0].reason if refused else "good"


def member(name: str, text: str, chance: random.Random) -> str:
    """``"name":text``, its name sometimes written with escapes."""
    escape = chance.random() < 0.3
    shown = "".join(f"\\u{ord(letter):04x}" if escape and chance.random() < 0.5 else letter for letter in name)
    return f'"{shown}"{chance.choice(["", " "])}:{chance.choice(["", chr(10)])}{text}'


def member_list(chance: random.Random) -> list[tuple[str, str]]:
    """Keys and values of a good row, some keys twice, some strings full of what could look like keys."""
    tricky = ['"', '\\"', '":"', '{"kind":"ant"}', '","site":"', "\u2028", "'", ":", "\\u0022", 'a"b"c"d']
    cells = dict(ROW) | {"site": chance.choice(["north", *tricky]), "who": chance.choice(["carol", *tricky])}
    pairs = [(name, json.dumps(value, ensure_ascii=chance.random() < 0.5)) for name, value in cells.items()]
    if chance.random() < 0.5:
        pairs = [pair for pair in pairs if pair[0] not in OPTIONAL or chance.random() < 0.6]
    for _ in range(chance.choice([0, 0, 1, 1, 2])):
        name, text = chance.choice(pairs)
        pairs.insert(chance.randrange(len(pairs) + 1), (name, "null" if name in OPTIONAL and chance.random() < 0.4 else text))
    chance.shuffle(pairs)
    return pairs


def test_keys_that_stand_twice_are_refused_exactly_where_a_plain_parser_sees_them() -> None:
    """Written with escapes, set back to null, beside absent keys, among strings that hold quotes, colons and braces."""
    chance = random.Random(17)
    counts = {True: 0, False: 0}
    for _ in range(3000):
        value = ("{" + ",".join(member(name, text, chance) for name, text in member_list(chance)) + "}").encode()
        names = [name for name, _ in json.loads(value, object_pairs_hook=list)]
        twice = len(set(names)) < len(names)
        counts[twice] += 1
        assert reason(value) == ("duplicate-field" if twice else "good"), value
    assert min(counts.values()) > 500


def mutated(value: bytes, chance: random.Random) -> bytes:
    """``value`` with one to three things done to it that a broken producer might do."""
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(value) + 1)
        end = min(len(value), at + chance.randrange(1, 12))
        token = chance.choice(TOKENS)
        value = chance.choice(
            [
                value[:at] + value[end:],
                value[:at] + token + value[end:],
                value[:at] + token + value[at:],
                value[:at] + bytes([chance.randrange(256)]) + value[at + 1 :],
                value[:at] + value[at:end] * 2 + value[end:],
                value[:at],
                value.replace(token, chance.choice(TOKENS), 1),
                value[at:] + value[:at],
            ]
        )
    return value


TOKENS = [
    *(b'{ } [ ] " : , \\ null true false NaN -Infinity 1e999 1e101 -0 "" "a" 0x1 /**/ \\" \\u0022 \\ud800 \\u0000'.split(b" ")),
    *(b'"size" "site" "label":1 "weight":-1 ,"size":1 ,"who":"x","who":"y" [[[[[[[[ {"a":'.split(b" ")),
    b"\x00",
    b"\xff",
    b"\xc3\xa9",
    b"\xef\xbb\xbf",
    b"\n",
    b"1" * 400,
]


def test_any_bytes_give_a_row_or_a_refusal_with_a_known_reason_and_nothing_else() -> None:
    """6,000 rows mutated along their structure, each beside good neighbours; whatever passes is what a plain parser sees."""
    chance = random.Random(23)
    rows = [encoded(row) for row in mixed_rows(40)]
    outcomes = Counter()
    for _ in range(2000):
        values = [mutated(chance.choice(rows), chance) for _ in range(3)]
        decoded, refused = CODEC.decode(events([GOOD, *values, GOOD]))
        assert len(decoded) + len(refused) == 5 and decoded.t[0] == 1000 and decoded.t[-1] == 1004
        assert all(np.isfinite(column).all() for column in (decoded.columns[0], decoded.columns[4], decoded.weight))
        for rejection in refused:
            dead_letter("t:0", rejection)
            outcomes[rejection.reason] += 1
        for at in {1, 2, 3} - {rejection.event.offset for rejection in refused}:
            pairs = json.loads(values[at - 1], object_pairs_hook=list)
            assert {name for name, _ in pairs} <= set(ROW) and len({name for name, _ in pairs}) == len(pairs)
            outcomes["good"] += 1
    assert set(outcomes) - {"good"} <= set(REASONS) and len(outcomes) >= 8


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
def test_bytes_that_nobody_meant_as_a_row_are_refused(value: bytes) -> None:
    """No row of this schema is so short."""
    assert reason(value) in REASONS
