"""A draft that learns online from what its target answered, so that more of what it drafts is accepted.

New completions wait until there are ``step_completions``; then come ``updates`` steps of AdamW. Each descends the weighted
mean of the loss over the answers of the new completions and of ``draws`` stored ones. Then the new ones are kept: in a ring of
the newest and in a reservoir over domains (buffer.py). The same completions in any batches give the same draft, bit for bit.

    loss = sum_i w_i D(p_i, q_i) / sum_i w_i     over positions i of answers; D and the partition: losses.py
    w_i  = 1 where the served draft was corrected, ``accepted_weight`` elsewhere

Differs from the paper: the target's log probabilities are those that serving captured, so the target is not run again;
accepted positions count too; completions are stored and drawn again. The paper as published is ``positions = "osd-published"``
with ``draws = 0``, ``updates = 1``, ``step_completions = 8``; its released code, which trains on the token behind, is
``"osd-coded"``.

Source: Liu et al., "Online Speculative Decoding", ICML 2024, arXiv 2310.07177; docs/design/learners.md#draft.
"""

from __future__ import annotations

from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from millrace.learners.draft.buffer import Kept, Reservoir, Ring, packed, unpacked
from millrace.learners.draft.completion import Completion, unpack
from millrace.learners.draft.config import DraftConfig
from millrace.learners.draft.folder import fingerprint
from millrace.learners.draft.hugging_face import context_of, logits, read, vocabulary_of
from millrace.learners.draft.losses import LOSSES, draft_partition, target_partition
from millrace.learners.draft.rows import Block, block_of, chunks, cut
from millrace.learners.draft.servable import DraftServable, completions_of, most_tokens, read_only, why_not
from millrace.learners.errors import BadInputError, ConfigError
from millrace.learners.linear.servable import finite
from millrace.learners.protocol import Array, Batch, Floats, State, Value
from millrace.learners.replay.networks import use_one_thread

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of AdamW, as torch calls them


class Draft:
    """A draft that learns online; ``config.start`` names the folder that it begins with."""

    revision: int = 1
    tolerance: float = 0.1  # training amplifies another host's rounding: the same to the eye, not to the digit
    probabilities: bool = False

    def __init__(self, config: DraftConfig, d: int, seed: int) -> None:
        """The draft of the folder, which has learned nothing yet. ``d``: features of a row, which are left alone.

        Raises: ConfigError where the folder is not what ``config.start`` says.
        """
        use_one_thread()
        folder = Path(config.start.folder)
        if (digest := fingerprint(folder)) != config.start.sha256:
            raise ConfigError(f"llm.draft: {folder} has sha256 {digest}, not {config.start.sha256}. Put the other one back.")
        self.config = config
        self.d = d
        self.described, self.model = read(folder)  # the model's config as JSON, and the model
        self.vocabulary = vocabulary_of(self.described)
        in_context = most_tokens(context_of(self.described), config.start.k)
        if in_context < 2:
            raise ConfigError(f"llm.k = {config.start.k}: the draft's context leaves room for no completion; lower it.")
        self.most_tokens = min(in_context, config.longest_tokens)
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        self.optimiser = torch.optim.AdamW(
            list(self.weights.values()), lr=config.rate, weight_decay=config.weight_decay, foreach=False
        )
        self.ring, self.reservoir = Ring(config.ring_tokens), Reservoir(config.reservoir_tokens)
        self.draws = np.random.Generator(np.random.PCG64([seed, 0]))
        self.waiting: list[Kept] = []
        self.rows = 0  # learned: those that wait are not yet
        self.skipped = 0  # steps whose gradient was not finite
        self.passed = dict.fromkeys(("flagged", "other_target", "too_long", "not_finite"), 0)  # not learned, by why
        self._raised: dict[str, Value] = {"factor": 1.0, "rows": 0}  # the rate is so many times as large for so many rows
        self._served: DraftServable | None = None

    @property
    def left_out(self) -> int:
        """Completions that were given and not learned."""
        return sum(self.passed.values())

    def learn_many(self, batch: Batch) -> None:
        """Learn completions, and those that waited. Raises: BadInputError where columns do not fit; nothing is learned then."""
        if not len(batch):
            return
        use_one_thread()
        for completion, value, weight in self._checked(batch):
            why = why_not(completion, self.config.start.target, self.most_tokens, self.vocabulary)
            if why:
                self.passed[why] += 1
            elif weight > 0.0:
                self.waiting.append(Kept(0.0, bytes(value), weight, completion.tokens, completion.header.domain))
            if len(self.waiting) == self.config.step_completions:
                self._learn()

    def predict_many(self, batch: Batch) -> Floats:
        """Accepted and tested positions (n, 2). Pure. Raises: BadInputError as the servable does."""
        return self.servable().predict_many(batch)

    def servable(self) -> DraftServable:
        """What proposes now. It shares the weights' memory until they change: then the learner goes on with copies."""
        if self._served is None:
            weights = {name: read_only(weight.detach().numpy()) for name, weight in self.weights.items()}
            self._served = DraftServable(self.described, weights, self.config.start.k, self.config.start.target)
        return self._served

    def noticed(self) -> dict[str, Any]:
        """Steps that were left out, and completions that were not learned, by why."""
        return {"skipped_steps": self.skipped} | self.passed

    def raise_rate(self, factor: float, rows: int) -> None:
        """Let the rate be ``factor`` > 0 times as large for the next ``rows`` >= 1 learned completions, then as before.

        A step is taken at the rate of its first completion; a second call takes the first one's place.
        Raises: BadInputError.
        """
        if not (0.0 < factor < np.inf and rows >= 1):
            raise BadInputError(f"factor = {factor}, rows = {rows}: must be a number above 0, and a whole number from 1")
        self._raised = {"factor": float(factor), "rows": int(rows)}

    def state_dict(self) -> State:
        """A copy of everything."""
        truth: dict[str, Value] = {**self._shape(), "draws": self.draws.bit_generator.state, "raised": dict(self._raised)}
        truth |= {"rows": self.rows, "skipped": self.skipped, "passed": dict(self.passed)}
        truth["domains"] = [[domain, below] for domain, below in self.reservoir.below.items()]
        kept = {"waiting": self.waiting, "ring": list(self.ring.items), "reservoir": self.reservoir.items}
        for prefix, items in kept.items():
            truth |= packed(prefix, items)
        for name, weight in self.weights.items():
            truth[f"weight.{name}"] = weight.detach().numpy().copy()
            moments = self.optimiser.state.get(weight, {})
            truth |= {f"{moment}.{name}": moments[moment].numpy().copy() for moment in MOMENTS if moment in moments}
        return State(truth)

    def load_state_dict(self, state: State) -> None:
        """Become the learner that gave ``state``, on copies of its arrays.

        Raises: LearnerError where the state is another learner's or another shape's.
        """
        truth = state.truth_of(self._shape())
        self.draws.bit_generator.state, self._raised = truth["draws"], dict(truth["raised"])
        self.rows, self.skipped, self.passed = truth["rows"], truth["skipped"], self.passed | truth["passed"]
        self.waiting = list(unpacked("waiting", truth))
        self.ring, self.reservoir = Ring(self.config.ring_tokens), Reservoir(self.config.reservoir_tokens)
        self.reservoir.know(dict(truth["domains"]))
        for store, prefix in ((self.ring, "ring"), (self.reservoir, "reservoir")):
            for item in unpacked(prefix, truth):
                store.add(item)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.data = torch.tensor(truth[f"weight.{name}"])
                moments = {moment: f"{moment}.{name}" for moment in MOMENTS if f"{moment}.{name}" in truth}
                self.optimiser.state[weight] = {moment: torch.tensor(truth[key]) for moment, key in moments.items()}
        self._served = None

    def _shape(self) -> dict[str, Value]:
        """What a state must agree on with its learner."""
        start, config = self.config.start, self.config
        sizes = {"ring_tokens": config.ring_tokens, "reservoir_tokens": config.reservoir_tokens}
        return {"kind": "Draft", "sha256": start.sha256, "target": start.target, "k": start.k, "top": start.top} | sizes

    def _checked(self, batch: Batch) -> list[tuple[Completion, bytes, float]]:
        finite("x", batch.x, (self.d,))
        if batch.y is None or batch.y.shape != (len(batch), 2):
            raise BadInputError(f"column y: expected {(len(batch), 2)}, got {None if batch.y is None else batch.y.shape}")
        completions = completions_of(batch)
        assert batch.sequences is not None
        weights = [1.0] * len(batch) if batch.weight is None else finite("weight", batch.weight, ()).tolist()
        if min(weights) < 0.0 or len(weights) != len(batch):
            raise BadInputError(f"column weight: expected {len(batch)} numbers >= 0, got {len(weights)}, least {min(weights)}")
        if wrong := [each.header.top for each in completions if each.header.top != self.config.start.top]:
            raise BadInputError(
                f"column sequences: {wrong[0]} log probabilities a token, and llm.top is {self.config.start.top}"
            )
        return list(zip(completions, batch.sequences.tolist(), weights, strict=True))

    def _learn(self) -> None:
        """The steps that those which wait bring about; then they are kept."""
        new, self.waiting = self.waiting, []
        self._part_from_served()
        rate = self.config.rate * (self._raised["factor"] if self._raised["rows"] else 1.0)
        for _ in range(self.config.updates):
            self._step([*new, *self._drawn()], rate)
        for item in new if self.config.draws else ():
            self.ring.add(item)
            self.reservoir.add(Kept(self.draws.random(), item.value, item.weight, item.tokens, item.domain))
        self.rows += len(new)
        self._raised["rows"] = max(0, self._raised["rows"] - len(new))

    def _part_from_served(self) -> None:
        """Leave the weights' memory to what was served, and go on with copies."""
        if self._served is not None:
            for weight in self.weights.values():
                weight.data = weight.data.clone()
            self._served = None

    def _drawn(self) -> list[Kept]:
        """Stored completions for one step; before any is stored, none. One at least comes from the reservoir."""
        draws = self.config.draws
        recent = max(0, min(round(self.config.recent_share * draws), draws - 1))
        return self.ring.draw(recent, self.draws) + self.reservoir.draw(draws - recent, self.draws)

    def _step(self, items: list[Kept], rate: float) -> None:
        """One step of AdamW on these completions; without a position that counts, or a finite gradient, none.

        They go through the model in blocks, so memory does not grow with how many there are. Gradients of blocks add up.
        """
        completions = [unpack(item.value) for item in items]
        counts = [item.weight * counted(each, self.config) for item, each in zip(items, completions, strict=True)]
        total = float(sum(count.sum(dtype=np.float64) for count in counts))
        if not total > 0.0:
            return
        for start, stop in cut(completions, self.vocabulary):
            block, weights = block_of(completions[start:stop]), torch.from_numpy(np.concatenate(counts[start:stop]))
            self._descend(block, weights / total)
        norm = torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.config.clip, foreach=False)
        if torch.isfinite(norm):
            self.optimiser.param_groups[0]["lr"] = rate
            self.optimiser.step()
        else:
            self.skipped += 1
        self.optimiser.zero_grad(set_to_none=True)

    def _descend(self, block: Block, weights: Tensor) -> None:
        """Add the gradient of a block's loss, with weights (N,) of its positions: chunk by chunk, then through the model."""
        states = block.hidden(self.model)
        cut_off = states.detach().requires_grad_()
        for rows in chunks(len(weights), self.vocabulary):
            loss = loss_of(block.of(rows), logits(self.model, cut_off[rows]), weights[rows], self.config.loss)
            loss.backward()  # type: ignore[no-untyped-call]
        states.backward(cut_off.grad)  # type: ignore[no-untyped-call]


def loss_of(block: Block, logits: Tensor, weights: Tensor, loss: str) -> Tensor:
    """The weighted sum over positions (N,) of a loss; logits (N, V)."""
    p = target_partition(block.log_p, block.sampled, logits.shape[1])
    log_q = draft_partition(logits, block.ids, block.sampled.temperature)
    return (weights * LOSSES[loss](p, log_q)).sum()


def counted(completion: Completion, config: DraftConfig) -> Array:
    """How much each position (L,) of an answer counts, float32.

    Where steps and tokens do not align, nobody knows which were corrected: all count 1, or with OSD none.
    """
    size, all_positions = len(completion.output), config.positions == "all"
    if not completion.aligned:
        return np.full(size, float(all_positions), dtype=np.float32)
    weights = np.full(size, config.accepted_weight if all_positions else 0.0, dtype=np.float32)
    for (at, hits, tested), behind in zip(completion.steps(), repeat(config.positions == "osd-coded")):
        if behind:
            weights[at + hits + 1 : at + hits + 2] = 1.0  # the released code trains on what follows a step's last token
        elif tested > hits:
            weights[at + hits] = 1.0
    return weights
