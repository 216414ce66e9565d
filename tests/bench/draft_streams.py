"""Streams of prompts whose domain changes: stationary, sharp, cyclic and mixed, of what the pair `llm/domains5M` answers in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow.parquet as parquet

from millrace.services.config.config import data_folder

FILES = {"sql": "spider_train", "math": "gsm8k_train", "code": "codealpaca"}  # of chat it is messages of irc_ubuntu
DOMAINS = ("chat", "sql", "math", "code")
LONGEST = 400  # characters of a prompt
PROBES = 48  # chat prompts of no stream, which show what is forgotten


@dataclass(frozen=True)
class Stream:
    """Domains of requests, in order."""

    name: str
    domains: tuple[str, ...]
    cuts: tuple[int, ...]  # where a segment begins, the first at 0

    @property
    def segments(self) -> list[slice]:
        """Requests from one cut to the next."""
        return [slice(*pair) for pair in zip(self.cuts, (*self.cuts[1:], len(self.domains)), strict=True)]

    def places(self) -> list[tuple[str, int]]:
        """Of each request its domain, and the how-manieth of that domain it is: no prompt comes twice."""
        seen: Counter[str] = Counter()
        found = []
        for domain in self.domains:
            found.append((domain, seen[domain]))
            seen[domain] += 1
        return found


def in_turn(name: str, domains: Sequence[str], size: int) -> Stream:
    """One domain after the other, ``size`` requests of each."""
    told = tuple(domain for domain in domains for _ in range(size))
    return Stream(name, told, tuple(range(0, len(told), size)))


def mixed(first: str, last: str, size: int) -> Stream:
    """``size`` requests, of which ever more are of the last domain, its share growing by the same each time."""
    draws = np.random.default_rng(0).random(size)
    told = tuple(last if draw < at / size else first for at, draw in enumerate(draws))
    return Stream(f"smooth: {first} to {last}", told, (0,))


def streams(size: int, quick: bool) -> list[Stream]:
    """All of them, of segments of ``size`` requests; where ``quick``, one of those that stay with a domain."""
    stay = [in_turn(f"stationary: {domain}", (domain,), size) for domain in (DOMAINS[1:2] if quick else DOMAINS)]
    shifts = (
        in_turn("sharp: chat, sql, math, code", DOMAINS, size),
        in_turn("cyclic: chat, sql, chat", DOMAINS[:2] + DOMAINS[:1], size),
    )
    return [*stay, *shifts, mixed("chat", "sql", 2 * size)]


def needed(chosen: Sequence[Stream]) -> Mapping[str, int]:
    """Prompts of each domain that the streams need, probes too."""
    most: Counter[str] = Counter()
    for stream in chosen:
        most |= Counter(stream.domains)
    return {domain: count + (PROBES if domain == "chat" else 0) for domain, count in most.items()}


def prompts(domain: str, count: int) -> list[str]:
    """So many distinct prompts of a domain as the target takes them, in an order that is shuffled once."""
    if domain == "chat":
        told = parquet.read_table(data_folder() / "irc_ubuntu" / "irc_2004_2011.parquet").column("text").to_pylist()
        texts = [text for text in told if 20 <= len(text) <= 120]
    else:
        told = parquet.read_table(data_folder() / "prompts" / f"{FILES[domain]}.parquet").column("prompt").to_pylist()
        texts = [text for text in told if len(text) <= LONGEST]
    distinct = np.array(list(dict.fromkeys(texts)), dtype=object)
    assert len(distinct) >= count, (domain, len(distinct), count)
    np.random.default_rng(1).shuffle(distinct)
    return [f"<|user|>{text}<|assistant|>" for text in islice(distinct, count)]
