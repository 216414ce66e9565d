"""One completion of a language model as its server saw it, packed into bytes: tokens, likeliest tokens, accepted counts.

    magic (4), CRC-32 of all that follows (4), length of the header (4), the header as a msgpack array,
    prompt (P,) u32, output (L,) u32, ids (L, top) u32, log probabilities (L, top) float16, drafted (S,) u8, accepted (S,) u8

All little-endian. A token of an answer takes 4 + 6 top bytes, and what stands around it is counted once a completion. Nothing
is coerced: ``unpack`` takes what ``pack`` wrote, and refuses everything else with a reason.

Positions of an answer are numbered from 0. Position 0 comes from the prompt's own pass; no step tested it. A step that drafted
d tokens and accepted a of them gives a + 1 positions. The last of these is corrected where a < d, else it is a bonus.

Source: vLLM 0.32, ``per_request_spec_decode_metrics = "detailed"``; docs/design/learners.md#draft.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Literal, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Floats

MAGIC = b"mrc\x01"
FRAME = struct.Struct("<4sII")  # magic, CRC-32, bytes of the header
Flag = Literal["adapter", "grammar", "penalty", "image", "min_p", "bias", "swap"]
# Of requests whose answers follow another distribution. bias: logit_bias, or tokens that are forbidden, forced or held back.
UNLEARNED: tuple[Flag, ...] = ("adapter", "grammar", "penalty", "image", "min_p", "bias")
FLAGS: tuple[Flag, ...] = (*UNLEARNED, "swap")  # swap: another draft took over while it was answered
MOST_TOP = 4096  # log probabilities a token
MOST_HEADER = 4096  # bytes of a packed header, so that what waits, and what a record takes to decode, stays bounded
MOST_DOMAIN = 64  # characters
MOST_DOMAINS = 64  # that are told apart; callers name them
OTHER = "other"  # the domain of all further ones
TEMPERATURES = 0.01, 100.0  # above 0; vLLM takes what is below the least for the least
PROBABILITY_SLACK = 0.01  # by which float16 may let a token's probabilities add up to more than 1

Tokens = NDArray[np.uint32]


def broken(reason: str, detail: str) -> BadInputError:
    """What ``unpack`` raises: why in a word, then why in a sentence."""
    return BadInputError(f"{reason}: {detail}")


@dataclass(frozen=True, slots=True)
class Header:
    """What is said of a completion beside its tokens."""

    id: str  # of the request
    domain: str  # as the request's header says, at most 64 characters that can be printed; empty: it says none
    branch: str  # with epoch and seq: the draft that proposed; empty: unknown
    epoch: int
    seq: int
    target: bytes  # (32,) sha256 of the target's folder
    temperature: float  # 0: greedy; else in [0.01, 100]
    top_p: float  # in (0, 1]
    top_k: int  # >= 0; 0: all tokens
    flags: tuple[Flag, ...]
    cached: int  # prompt tokens whose state was there already
    ended: Literal["stop", "length", "abort"]
    prompt: int  # P, tokens
    output: int  # L, tokens
    top: int  # log probabilities a token
    steps: int  # S, of verification


HEADER = tuple(field.name for field in fields(Header))  # in the order in which they are packed
_hints = get_type_hints(Header)
PACKED_HEADER: Any = tuple[tuple(_hints[name] for name in HEADER)]  # type: ignore[misc]  # made of the record's own types


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """A completion, unpacked. Arrays are views of its bytes."""

    header: Header
    prompt: Tokens  # (P,)
    output: Tokens  # (L,)
    ids: Tokens  # (L, top), likeliest first
    log_probabilities: NDArray[np.float16]  # (L, top), of the target at temperature 1, never increasing along a row
    drafted: NDArray[np.uint8]  # (S,)
    accepted: NDArray[np.uint8]  # (S,)

    @property
    def tokens(self) -> int:
        """Of prompt and answer."""
        return len(self.prompt) + len(self.output)

    @property
    def learnable(self) -> bool:
        """Whether the target's own distribution gave it, so that a draft can learn it."""
        return not set(self.header.flags) & set(UNLEARNED)

    @property
    def aligned(self) -> bool:
        """Whether the steps account for every token: neither tokens without a step, nor a step without a token."""
        ends = 1 + np.cumsum(self.accepted.astype(np.int64) + 1)
        if not len(ends):
            return len(self.output) <= 1
        return bool(ends[-1] >= len(self.output) and (ends[-1] - int(self.accepted[-1]) - 1) < len(self.output))

    def steps(self) -> list[tuple[int, int, int]]:
        """First position, accepted and tested positions of each step, the last one cut at the answer's end."""
        cut, at = [], 1
        for drafted, accepted in zip(self.drafted.tolist(), self.accepted.tolist(), strict=True):
            room = len(self.output) - at
            hits = min(accepted, room)
            cut.append((at, hits, hits + (accepted < drafted and hits < room)))
            at += accepted + 1
        return cut

    def served(self) -> tuple[float, float]:
        """Accepted and tested positions as served; NaN twice where they say nothing of the draft that is named.

        That is where steps and tokens do not align, where prompt tokens were cached, and where drafts changed meanwhile.
        """
        if not self.aligned or self.header.cached or "swap" in self.header.flags:
            return np.nan, np.nan
        steps = self.steps()
        return float(sum(hits for _, hits, _ in steps)), float(sum(tested for _, _, tested in steps))


def pack(completion: Completion) -> bytes:
    """The bytes of a completion; its header's counts are those of its arrays, whatever they said."""
    arrays = (
        completion.prompt.astype("<u4"),
        completion.output.astype("<u4"),
        completion.ids.astype("<u4"),
        completion.log_probabilities.astype("<f2"),
        completion.drafted.astype("u1"),
        completion.accepted.astype("u1"),
    )
    counts = {"prompt": len(arrays[0]), "output": len(arrays[1]), "top": arrays[2].shape[1], "steps": len(arrays[4])}
    header = msgspec.msgpack.encode(astuple(replace(completion.header, **counts)))
    body = len(header).to_bytes(4, "little") + header + b"".join(array.tobytes() for array in arrays)
    return MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def domain_among(known: Collection[str], domain: str) -> str:
    """Under which name a domain is kept or counted, where ``known`` are."""
    return domain if domain in known or len(known) < MOST_DOMAINS else OTHER


def header_of(value: bytes) -> Header:
    """The header alone; bytes that ``unpack`` has taken before. Raises: BadInputError."""
    if len(value) < FRAME.size:
        raise broken("unreadable", f"{len(value)} bytes are too few for a completion")
    magic, checksum, length = FRAME.unpack_from(value)
    if magic != MAGIC:
        raise broken("unreadable", "it does not begin as a completion of this release does")
    if zlib.crc32(memoryview(value)[8:]) != checksum:
        raise broken("unreadable", "its checksum is not that of its bytes; it was cut or changed on the way")
    if length > MOST_HEADER:
        raise broken("oversized", f"header: {length} bytes; at most {MOST_HEADER}")
    try:
        return Header(*msgspec.msgpack.decode(value[FRAME.size : FRAME.size + length], type=PACKED_HEADER))
    except msgspec.ValidationError as error:
        raise broken("wrong-type", f"header: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise broken("unreadable", f"header: {error}") from error


def unpack(value: bytes) -> Completion:
    """The completion that ``pack`` was given, checked. Raises: BadInputError."""
    header = header_of(value)
    _check_header(header)
    prompt, output, top, steps = header.prompt, header.output, header.top, header.steps
    sizes = [4 * prompt, 4 * output, 4 * output * top, 2 * output * top, steps, steps]
    start = FRAME.size + FRAME.unpack_from(value)[2]
    if len(value) != start + sum(sizes):
        detail = (
            f"{prompt} + {output} tokens, {top} a token and {steps} steps make {start + sum(sizes)} bytes, not {len(value)}"
        )
        raise broken("wrong-shape", detail)
    ends = start + np.cumsum([0, *sizes])
    types = ("<u4", "<u4", "<u4", "<f2", "u1", "u1")
    arrays = [
        np.frombuffer(value, kind, count=size // np.dtype(kind).itemsize, offset=int(at))
        for kind, size, at in zip(types, sizes, ends, strict=False)
    ]
    shape = (output, top)
    completion = Completion(header, arrays[0], arrays[1], arrays[2].reshape(shape), arrays[3].reshape(shape), *arrays[4:])
    _check_arrays(completion)
    return completion


def _check_header(header: Header) -> None:
    least, most = TEMPERATURES
    problems = {
        "id: empty": not header.id,
        f"domain: over {MOST_DOMAIN} characters, or one that cannot be printed": (
            len(header.domain) > MOST_DOMAIN or not header.domain.isprintable()
        ),
        "target: not the 32 bytes of a sha256": len(header.target) != 32,
        f"temperature: neither 0 nor from {least} to {most}": not (
            header.temperature == 0.0 or least <= header.temperature <= most
        ),
        "top_p: not in (0, 1]": not 0.0 < header.top_p <= 1.0,
        "top_k, epoch, seq or cached: below 0": min(header.top_k, header.epoch, header.seq, header.cached) < 0,
        "flags: one stands twice": len(set(header.flags)) < len(header.flags),
        "cached: more tokens than the prompt has": header.cached > header.prompt,
        "prompt or output: no tokens": min(header.prompt, header.output) < 1,
        f"top: not in 1 to {MOST_TOP}": not 1 <= header.top <= MOST_TOP,
        "steps: below 0": header.steps < 0,
    }
    for problem, holds in problems.items():
        if holds:
            raise broken("out-of-range", problem)


def _check_arrays(completion: Completion) -> None:
    """Raise for log probabilities that are none, tokens that stand twice in a row, and counts that contradict each other."""
    logs: Floats = completion.log_probabilities.astype(np.float64)
    if not np.isfinite(logs).all() or logs.max() > 0.0:
        raise broken("not-finite", "a log probability is not finite, or above 0")
    if (np.diff(logs, axis=1) > 0.0).any():
        raise broken("out-of-range", "log probabilities of a token do not go from likely to less likely")
    if np.exp(logs).sum(axis=1).max() > 1.0 + PROBABILITY_SLACK:
        raise broken("out-of-range", "probabilities of a token add up to more than 1")
    ids: Array = np.sort(completion.ids, axis=1)
    if (ids[:, 1:] == ids[:, :-1]).any():
        raise broken("duplicate-field", "a token stands twice among the likeliest of one position")
    if (completion.accepted > completion.drafted).any():
        raise broken("out-of-range", "a step accepted more tokens than it drafted")
