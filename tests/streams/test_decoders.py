"""Decoders that stop at a limit: the same bytes as kafka-python's own below it, and bounded memory above it."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from pipelines import TIMEOUT_S

from millrace.streams.errors import DamageError
from millrace.streams.kafka import decompression as decoders

snappy = pytest.importorskip("snappy", reason="the codecs of Kafka are not installed")
codec = pytest.importorskip("kafka.codec", reason="the client of Kafka is not installed")

KINDS = ["gzip", "snappy", "lz4", "zstd"]
BOMB = """
import resource, sys
from kafka import codec
from millrace.streams.errors import DamageError
from millrace.streams.kafka import decompression as decoders
with open(sys.argv[2], "rb") as file:
    small = file.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decoders.DECODERS[sys.argv[1]](small)
except DamageError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 300, 256 << 10, (256 << 10) + 1, 3_000_000])
def test_what_is_within_the_limit_is_decoded_as_the_client_would(kind: str, size: int) -> None:
    """Byte for byte, whatever the size of the chunks that it is decoded in."""
    plain = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    small = getattr(codec, f"{kind}_encode")(plain)
    assert decoders.DECODERS[f"{kind}_decode"](small) == plain
    if (kind, size) != ("snappy", 0):  # which the client itself cannot read back
        assert getattr(codec, f"{kind}_decode")(small) == plain


@pytest.mark.parametrize("kind", ["gzip", "snappy", "lz4"])
def test_what_is_cut_off_is_an_error_and_not_fewer_bytes(kind: str) -> None:
    """Zstandard alone gives what there is, as it does to the client, which then finds records too short."""
    small = getattr(codec, f"{kind}_encode")(random.Random(1).randbytes(100_000))
    with pytest.raises((EOFError, RuntimeError, ValueError, snappy.UncompressError)):
        decoders.DECODERS[f"{kind}_decode"](small[:-50])


def test_one_byte_over_the_limit_is_refused(monkeypatch) -> None:
    """And the limit itself is not."""
    monkeypatch.setattr(decoders, "DECODED_BYTES", 1000)
    for kind in KINDS:
        decode, encode = decoders.DECODERS[f"{kind}_decode"], getattr(codec, f"{kind}_encode")
        assert decode(encode(bytes(1000))) == bytes(1000)
        with pytest.raises(DamageError, match="decodes to more than"):
            decode(encode(bytes(1001)))


def test_raw_snappy_and_many_frames_are_bounded_too(monkeypatch) -> None:
    """Blocks are added up before any of them is decoded, and so are members and frames."""
    monkeypatch.setattr(decoders, "DECODED_BYTES", 1000)
    raw = codec.snappy_encode(bytes(1001), xerial_compatible=False)
    many = [codec.snappy_encode(bytes(1001), xerial_blocksize=100), 2 * codec.gzip_encode(bytes(501))]
    for decode, small in [
        (decoders.snappy_decode, raw),
        (decoders.snappy_decode, many[0]),
        (decoders.gzip_decode, many[1]),
        (decoders.zstd_decode, 2 * codec.zstd_encode(bytes(501))),
    ]:
        with pytest.raises(DamageError, match="decodes to more than"):
            decode(small)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_costs_no_more_memory_than_the_limit_twice(kind: str, tmp_path) -> None:
    """300 MiB of zeros, in a process of its own, whose largest size is looked at."""
    (tmp_path / "bomb").write_bytes(getattr(codec, f"{kind}_encode")(bytes(300 << 20)))
    command = [sys.executable, "-c", BOMB, f"{kind}_decode", tmp_path / "bomb"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    grown_kib, stderr = done.stdout.split(" ", 1)
    assert "more than 64 MiB" in stderr and int(grown_kib) << 10 < 2 * decoders.DECODED_BYTES
