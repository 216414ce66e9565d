"""What is captured of a language model's completions: whose, and how each becomes a record. Needs no vLLM.

Whose request it is stands in a context variable, which whoever answers the request sets before vLLM sees it. Each choice of an
answer is gathered as its tokens come, and is a record once it has ended, or its caller has left.

A record names the draft that proposed. Requests that a swap touches are flagged, by a number that is odd while one is under
way: the version that vLLM tells is set by another message than the weights, so a step between the two would have a wrong one.

Source: vLLM 0.32, ``vllm/outputs.py``, ``vllm/logprobs.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.learners.draft.completion import MOST_DOMAIN, TEMPERATURES, Completion, Flag, Header
from millrace.learners.protocol import Array
from millrace.services.pipeline.bundle import Identity
from millrace.streams.schema import Llm

# What the process of an engine has in its environment before vLLM is loaded.
ENVIRONMENT: Mapping[str, str] = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing is told to anybody about who runs which model
    "HF_HUB_OFFLINE": "1",  # models are folders
    "VLLM_API_KEY": "",  # tokens are checked before a request comes here
}
MOST_ID = 128  # characters of a request's id; callers may name it
GREEDY = 1e-5  # below this vLLM draws the likeliest token
ENDS = ("stop", "length", "abort")  # all that a record says of them
Seen = Callable[[Completion, bytes], None]  # a completion, and its tenant


@dataclass(frozen=True, slots=True)
class Asked:
    """Whose request it is. Of one that says nothing nothing is captured."""

    tenant: bytes = b""  # becomes the record's key
    domain: str = ""  # as the request's header says
    capture: bool = False


ASKED: ContextVar[Asked] = ContextVar("asked", default=Asked())  # noqa: B039  # it is frozen


@dataclass(slots=True)
class Counts:
    """Choices of answers since the engine began."""

    seen: int = 0  # each is captured or dropped once it has ended
    captured: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    shortened: int = 0  # that ended by length before the length that was asked for, since the draft takes no more


def why_not(asked: Asked, llm: Llm) -> str:
    """Why nothing of a request is captured, in a word; empty: it is."""
    if llm.capture == "none":
        return "off"
    if not asked.capture:
        return "opted_out"
    if llm.capture != "all" and asked.tenant.decode(errors="replace") not in llm.capture:
        return "tenant"
    return ""


def why_not_of(params: Any) -> str:
    """The same of vLLM's sampling parameters."""
    if params.logprob_token_ids:
        return "own_tokens"  # asked for in place of the likeliest
    return "one_token" if params.max_tokens == 1 else ""  # of which nothing is drafted; a search over beams asks for many such


def flags_of(params: Any, prompt: Any, adapter: Any) -> tuple[Flag, ...]:
    """Why a draft cannot learn from what vLLM's sampling parameters and prompt ask for."""
    penalties = params.presence_penalty, params.frequency_penalty, params.repetition_penalty - 1.0
    bent = (
        params.logit_bias,
        params.allowed_token_ids,
        params.bad_words,
        params.min_tokens,
        params.trace_decode_token_ids,
        params.watermarking,
    )
    holds: Mapping[Flag, bool] = {
        "adapter": adapter is not None,
        "grammar": params.structured_outputs is not None,
        "penalty": any(penalties),
        "image": isinstance(prompt, dict) and prompt.get("type", "token") != "token",
        "min_p": params.min_p > 0.0,
        "bias": any(bent) or params.thinking_token_budget is not None,
    }
    return tuple(flag for flag, yes in holds.items() if yes)


def row_of(row: Mapping[int, Any], top: int) -> list[tuple[int, float]]:
    """The likeliest tokens of one position and their log probabilities, likeliest first."""
    ranked = sorted(row.items(), key=lambda item: item[1].rank)
    return [(token, said.logprob) for token, said in ranked[:top]]


def rows_of(logprobs: Any, top: int) -> tuple[Array, Array]:
    """Tokens and log probabilities (L, top) of what vLLM gave for L positions, likeliest first.

    Its flat form has the drawn token first at each position, and then the likeliest by rank, with the drawn one among them or
    not. Where several pieces were joined the drawn token stands once, so such a position is shorter.
    """
    if (width := width_of(logprobs)) > top:
        tokens, logs = (np.array(values).reshape(-1, width) for values in (logprobs.token_ids, logprobs.logprobs))
        return tokens[:, 1 : top + 1], logs[:, 1 : top + 1]
    rows = [row_of(row, top) for row in logprobs]
    pairs = np.array(rows, dtype=np.float64).reshape(len(rows), -1, 2)
    return pairs[:, :, 0], pairs[:, :, 1]


def width_of(logprobs: Any) -> int:
    """How many entries each position of the flat form has; 0 where it is another form, or they have different numbers."""
    ends = getattr(logprobs, "end_indices", ())
    widths = {stop - start for start, stop in zip(logprobs.start_indices, ends, strict=True)} if ends else set()
    return widths.pop() if len(widths) == 1 else 0


def cut_rows(logprobs: Any, most: int | None) -> Any:
    """What the caller asked for: of each position the drawn token and the ``most`` likeliest; all for -1, nothing for None."""
    if most is None or logprobs is None:
        return None
    return [
        {token: said for at, (token, said) in enumerate(row.items()) if at == 0 or most < 0 or said.rank <= most}
        for row in logprobs
    ]


@dataclass(slots=True)
class Choice:
    """One choice of an answer, as far as it has come."""

    tokens: list[int] = field(default_factory=list)
    so_far: Any = None  # log probabilities as vLLM gave them, where it gives all so far each time
    pieces: list[tuple[Array, Array]] = field(default_factory=list)  # what they say, where it gives what is new
    drafted: Sequence[int] = ()  # of each step, once it has ended
    accepted: Sequence[int] = ()
    spans: int = 0  # versions of weights that it names
    ended: str = ""  # why; empty: it has not

    def take(self, output: Any, whole: bool, top: int) -> None:
        """What vLLM gave of it: all so far where ``whole``, else what is new."""
        if whole:
            self.tokens, self.so_far = output.token_ids, output.logprobs
        else:
            self.tokens.extend(output.token_ids)
            if output.logprobs:
                self.pieces.append(small(*rows_of(output.logprobs, top)))
        if output.finish_reason is not None:
            self.ended, self.spans = output.finish_reason, len(output.weight_versions or ())
            if output.spec_decode_metrics is not None:
                self.drafted = output.spec_decode_metrics.per_step_drafted
                self.accepted = output.spec_decode_metrics.per_step_accepted

    def rows(self, top: int) -> tuple[Array, Array]:
        """Tokens and log probabilities (L, top) of all its positions that have any."""
        pieces = [small(*rows_of(self.so_far, top))] if self.so_far else self.pieces
        if not pieces:
            return np.empty((0, top), np.uint32), np.empty((0, top), np.float16)
        tokens, logs = zip(*pieces, strict=True)
        return np.concatenate(tokens), np.concatenate(logs)


@dataclass(slots=True)
class Gathering:
    """A request that is captured, while it is answered."""

    id: str
    asked: Asked
    params: Any  # as the caller asked, cut to what the draft can take
    top: int  # log probabilities a token that are captured
    flags: tuple[Flag, ...]
    draft: Identity  # that proposed when it began
    turn: int  # of the tap then
    prompt: Sequence[int] = ()
    cached: int = 0
    choices: dict[int, Choice] = field(default_factory=dict)

    def take(self, output: Any) -> None:
        """What vLLM gave of any of its choices."""
        self.prompt = output.prompt_token_ids or ()
        # Of several choices that come together one alone tells; others may have found the first one's prompt.
        self.cached = max(self.cached, output.num_cached_tokens or 0, int(len(output.outputs) > 1))
        whole = self.params.output_kind.name != "DELTA"
        for choice in output.outputs:
            self.choices.setdefault(choice.index, Choice()).take(choice, whole, self.top)


@dataclass(slots=True)
class Tap:
    """Sees every request of an engine, and hands on what is captured."""

    llm: Llm
    seen: Seen  # called on the event loop; does not block
    draft: Identity  # that proposes
    counts: Counts = field(default_factory=Counts)
    turn: int = 0  # odd while drafts are swapped

    def begin(self, request_id: str, params: Any, prompt: Any, adapter: Any) -> Gathering | None:
        """Of a request that begins: what it is gathered in, or None where it is not captured."""
        asked = ASKED.get()
        reason = why_not(asked, self.llm) or why_not_of(params)
        self.counts.seen += params.n
        if reason or not isinstance(prompt, dict):
            self.counts.dropped[reason or "streamed_prompt"] += params.n
            return None
        return Gathering(request_id, asked, params, self.llm.top, flags_of(params, prompt, adapter), self.draft, self.turn)

    def raised(self, params: Any) -> Any:
        """The same sampling parameters, asking for at least as many log probabilities as are captured."""
        more = copy(params)
        more.logprobs = -1 if params.logprobs == -1 else max(params.logprobs or 0, self.llm.top)
        more.flat_logprobs = params.prompt_logprobs is None  # the caller's own come in the form that vLLM's API writes
        return more

    def told(self, gathering: Gathering | None, params: Any, output: Any) -> Any:
        """Take what is captured of an output. Returns the output as the caller is to have it."""
        if gathering is not None:
            gathering.take(output)
        for choice in output.outputs:
            if gathering is not None:
                choice.logprobs = cut_rows(choice.logprobs, params.logprobs)
                choice.cumulative_logprob = None if params.logprobs is None else choice.cumulative_logprob
            if not self.llm.show_counts:
                choice.spec_decode_metrics = None
        return output

    def end(self, gathering: Gathering | None) -> None:
        """Hand on what has come of a request, whose caller has all of it, or left."""
        if gathering is None:
            return
        for index in range(gathering.params.n):
            choice = gathering.choices.get(index, Choice())
            rows = choice.rows(self.llm.top)
            if reason := why_no_record(gathering, choice, rows):
                self.counts.dropped[reason] += 1
                continue
            self.counts.captured += 1
            swapped = gathering.turn != self.turn or self.turn % 2 == 1 or choice.spans > 1
            flags = (*gathering.flags, *(("swap",) if swapped else ()))
            self.seen(self._record(gathering, index, rows, flags), gathering.asked.tenant)

    def _record(self, gathering: Gathering, index: int, rows: tuple[Array, Array], flags: tuple[Any, ...]) -> Completion:
        params, draft, prompt, choice = gathering.params, gathering.draft, gathering.prompt, gathering.choices[index]
        said = printable(gathering.id, MOST_ID)
        header = Header(
            id=said if params.n == 1 and said else f"{said}-{index}",
            domain=printable(gathering.asked.domain, MOST_DOMAIN),
            branch=draft.branch,
            epoch=draft.epoch,
            seq=draft.seq,
            target=bytes.fromhex(self.llm.target_sha256),
            temperature=temperature_of(params),
            top_p=params.top_p,
            top_k=max(params.top_k, 0),
            flags=flags,
            cached=min(gathering.cached, len(prompt)),
            ended=choice.ended if choice.ended in ENDS else "abort",  # type: ignore[arg-type]  # mypy does not narrow by ENDS
            prompt=len(prompt),
            output=len(choice.tokens),
            top=self.llm.top,
            steps=len(choice.drafted),
        )
        tokens = np.array(prompt, np.uint32), np.array(choice.tokens, np.uint32)
        return Completion(header, *tokens, *rows, np.array(choice.drafted, np.uint8), np.array(choice.accepted, np.uint8))

    @contextmanager
    def turning(self) -> Iterator[None]:
        """While drafts are swapped."""
        self.turn += 1
        try:
            yield
        finally:
            self.turn += 1


def temperature_of(params: Any) -> float:
    """0 where vLLM draws the likeliest token."""
    return 0.0 if params.temperature < GREEDY else float(params.temperature)


def why_no_record(gathering: Gathering, choice: Choice, rows: tuple[Array, Array]) -> str:
    """Why a choice gives no record, in a word; empty: it gives one."""
    least, most = TEMPERATURES
    temperature = temperature_of(gathering.params)
    if not choice.tokens:
        return "no_tokens"
    if not gathering.prompt:
        return "no_prompt_tokens"  # it came as embeddings
    if temperature != 0.0 and not least <= temperature <= most:
        return "temperature"
    if len(rows[0]) != len(choice.tokens):
        return "no_log_probabilities"
    return ""


def printable(said: str, most: int) -> str:
    """What a caller said, without what cannot be printed, and cut."""
    return "".join(letter for letter in said if letter.isprintable())[:most]


def small(tokens: Array, logs: Array) -> tuple[NDArray[np.uint32], NDArray[np.float16]]:
    """Rows as records have them. No log probability is above 0, and what is less than float16 holds is its least."""
    return tokens.astype(np.uint32), np.clip(logs, float(np.finfo(np.float16).min), 0.0).astype(np.float16)
