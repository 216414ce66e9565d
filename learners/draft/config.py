"""The configuration of a draft. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from millrace.learners.declaration import later
from millrace.learners.replay.config import Allowed, number, one_of


@dataclass(frozen=True, slots=True)
class Start:
    """What a draft begins with, and for which target; the table [llm] says it."""

    folder: str = ""  # as Hugging Face lays it out
    sha256: str = ""  # of the folder
    target: str = ""  # sha256 of the target's folder: completions of another are not learned
    k: int = 4  # tokens drafted a step
    top: int = 20  # log probabilities a token


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """How a draft is distilled."""

    task: str = one_of("distil")  # drafts learn what a target answered
    # what is descended, of p (target) and q (draft) over the likeliest tokens and the rest: kl KL(p|q), rkl KL(q|p), jsd with
    # beta 1/2, ce -log q(argmax p), tv 1 - alpha, nla -log alpha, lk exp(-3 alpha) KL + (1 - exp(-3 alpha)) TV
    loss: str = one_of("kl", "rkl", "jsd", "ce", "tv", "nla", "lk")
    # of an answer which positions count: all, corrected ones with weight 1; those that the OSD paper trains on, corrected ones
    # alone; those that its code trains on, the one after the last of each step
    positions: str = one_of("all", "osd-published", "osd-coded")
    accepted_weight: float = number(0.25, 0.0, 1.0)  # of positions that were accepted; more learns more of what is known
    rate: float = number(1e-3, 0.0, 1.0, "(]")  # of AdamW; more forgets faster
    weight_decay: float = number(0.0, 0.0, 1.0, "[)")  # of AdamW; more pulls weights to 0
    clip: float = number(1.0, 0.0, ends="()")  # largest norm of a gradient; less takes smaller steps where it is large
    step_completions: int = number(4, 1, 4096)  # new ones that bring about gradient steps; more waits longer
    updates: int = number(2, 1, 64)  # gradient steps each time; more learns faster and costs more
    draws: int = number(12, 0, 4096)  # stored completions beside the new ones in each gradient step; 0: none is stored
    recent_share: float = number(0.75, 0.0, 0.9)  # of the draws from the ring; the others come from the reservoir over domains
    ring_tokens: int = number(262_144, 1)  # of the newest completions that are kept
    reservoir_tokens: int = number(65_536, 1)  # of completions kept at random, as many tokens of each domain
    # of reservoir_tokens, and of ring_tokens: prompt and answer of a completion that is learned; what is longer is passed
    longest_share: float = number(0.125, 0.0, 1.0, "(]")
    start: Start = later(Start())  # not to be written: [llm] says it

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer of the longest completion that is learned."""
        return int(self.longest_share * min(self.ring_tokens, self.reservoir_tokens))

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        for key in fields(self):
            allowed: Allowed | None = key.metadata.get("allowed")
            value = getattr(self, key.name)
            if allowed is not None and not allowed.fits(value, key.default):
                raise ValueError(f"{key.name} = {value!r}: must be {allowed}")
