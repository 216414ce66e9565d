"""Damaged Arrow messages: pyarrow is C++ and follows what the bytes say, so whatever comes must end in rows or a reason."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa
from arrows import message
from pipelines import MIXED, encoded, event, mixed_rows

from millrace.streams.branch.outputs import dead_letter
from millrace.streams.formats.arrow import encode_rows
from millrace.streams.formats.contents import Contents
from millrace.streams.formats.meaning import REASONS

CONTENTS = Contents(MIXED, 4096, 1 << 20)
GOOD = encoded(mixed_rows(1)[0])
LENGTHS = [0, 1, -1, 2, 7, 255, 1 << 15, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, -(1 << 63)]


def originals() -> list[bytes]:
    """Good messages of every make: compressed, with dictionaries, of several batches, with lists of any length."""
    plain = encode_rows(mixed_rows(40), MIXED)
    batch = pa.ipc.open_stream(plain).read_all().combine_chunks().to_batches()[0]
    coded = batch.set_column(batch.schema.get_field_index("site"), "site", batch.column("site").dictionary_encode())
    loose = batch.set_column(
        batch.schema.get_field_index("pixels"), "pixels", batch.column("pixels").cast(pa.list_(pa.float32()))
    )
    batches = [coded, loose, batch]
    return [plain, *(message([part, part.slice(3, 5)], how) for part in batches for how in (None, "lz4", "zstd"))]


def mutated(value: bytes, chance: random.Random) -> bytes:
    """One to four things done to it: bytes and lengths overwritten, pieces cut out, doubled, swapped; or its end lost."""
    raw = bytearray(value)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(4, max(5, len(raw)))
        how = min(chance.randrange(20), 9) if chance.random() < 0.3 else chance.randrange(4)
        if how == 0:
            raw[at : at + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            raw[at : at + 1] = bytes([raw[at % len(raw)] ^ (1 << chance.randrange(8))])
        elif how == 2:
            at -= at % 4
            raw[at : at + 4] = (chance.choice(LENGTHS) & 0xFFFFFFFF).to_bytes(4, "little")
        elif how == 3:
            at -= at % 8
            raw[at : at + 8] = chance.choice(LENGTHS).to_bytes(8, "little", signed=True)
        elif how < 6:
            del raw[at : at + chance.randrange(1, 65)]
        elif how < 8:
            raw[at:at] = raw[at : at + chance.randrange(1, 65)]
        else:
            del raw[at:]
    return bytes(raw)


def fuzz(turns: int, seed: int) -> Counter[str]:
    """How so many mutated messages ended."""
    chance, outcomes, makes = random.Random(seed), Counter(), originals()
    for turn in range(turns):
        value = mutated(chance.choice(makes), chance)
        rows, refused = CONTENTS.decode([event(GOOD), event(value, 1, 2000), event(GOOD, 2)])
        assert rows.t[0] == rows.t[-1] == 1000, turn
        for column in (rows.columns[0], rows.columns[4], rows.weight):
            assert np.isfinite(column).all()
        assert all(isinstance(name, str | None) for name in rows.columns[5])
        for rejection in refused:
            assert rejection.reason in REASONS
            dead_letter("t:0", rejection)
        whole = [rejection.reason for rejection in refused if rejection.row is None]
        outcomes[whole[0] if whole else "rows"] += 1
    return outcomes


def test_any_damage_ends_in_rows_or_in_a_declared_reason_beside_good_neighbours() -> None:
    """6,000 messages; none ends the process, none raises, each way out is seen."""
    outcomes = fuzz(6000, 29)
    assert {"rows", "unreadable", "oversized", "unknown-field"} <= set(outcomes), outcomes


if __name__ == "__main__":
    import sys

    sys.stdout.write(f"{fuzz(int(sys.argv[1]), int(sys.argv[2]))}\n")
