"""Where a key belongs: the same place that whoever appended it chose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.streams.records import Record
from millrace.streams.sharding import by_murmur2, murmur2
from millrace.streams.sqlite.log import SqliteLog, by_crc32

KEYS = st.lists(st.binary(max_size=40), max_size=30)


@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_the_embedded_logs_keys_are_where_it_puts_them(tmp_path, partitions) -> None:
    """Key by key, whatever was appended before them."""
    log, keys = SqliteLog(tmp_path / "log.sqlite"), [b"", *(f"request {at}/0".encode() for at in range(50))]
    log.create_topic("t", partitions)
    log.append("t", [Record(b"without a key")] * 3)
    placed = [partition for partition, _ in log.append("t", [Record(b"x", key) for key in keys])]
    assert by_crc32(partitions)(keys).tolist() == placed


@given(KEYS, st.integers(1, 9))
def test_kafkas_keys_are_where_its_clients_put_them(keys, partitions) -> None:
    """By kafka-python's own partitioner, which is Java's."""
    partitioner = pytest.importorskip("kafka.partitioner", reason="kafka-python is not installed")
    right = [(partitioner.murmur2(key) & 0x7FFFFFFF) % partitions for key in keys]
    assert by_murmur2(partitions)(keys).tolist() == right


def test_hashes_are_those_of_kafkas_own_tests() -> None:
    """As its Java tests have them, in UtilsTest."""
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    known |= {b"a-little-bit-longer-string": -1486304829, b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971}
    assert murmur2(list(known)).view(np.int32).tolist() == list(known.values())
