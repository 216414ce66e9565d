"""How a completion becomes a record, without vLLM: classes here stand in for its own, and say what a real engine said."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest

from millrace.learners.draft.completion import pack, unpack
from millrace.services.errors import SwapRefusedError
from millrace.services.llm.capture import ASKED, Asked, Choice, Tap, cut_rows, flags_of, printable, rows_of, small, why_not
from millrace.services.llm.swapping import refuse_older
from millrace.services.pipeline.bundle import Identity
from millrace.streams.schema import Llm

LLM = Llm("target", "draft", "all", k=2, top=2, target_sha256="ab" * 32)
MAIN = Identity("main", 1, 7, "main.3")


@dataclass(frozen=True)
class Said:
    """Of one token at one position."""

    logprob: float
    rank: int


@dataclass
class Flat:
    """vLLM's flat form: of each position the drawn token, then the likeliest."""

    rows: list[list[tuple[int, float, int]]]
    start_indices: list[int] = field(init=False)
    end_indices: list[int] = field(init=False)
    token_ids: list[int] = field(init=False)
    logprobs: list[float] = field(init=False)

    def __post_init__(self) -> None:
        entries = [entry for row in self.rows for entry in row]
        self.token_ids, self.logprobs = [entry[0] for entry in entries], [entry[1] for entry in entries]
        ends = np.cumsum([0, *map(len, self.rows)]).tolist()
        self.start_indices, self.end_indices = ends[:-1], ends[1:]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[int, Said]]:
        return ({token: Said(log, rank) for token, log, rank in row} for row in self.rows)


class Kind(Enum):
    """How vLLM gives an answer: all so far, what is new, or the end alone."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


DRAWN_FIRST = [(5, -0.2, 1), (5, -0.2, 1), (8, -1.9, 2)]  # the drawn token is the likeliest
DRAWN_LAST = [(9, -4.0, 31), (5, -0.1, 1), (8, -3.0, 2)]  # and here it is none of them
JOINED = [(5, -0.2, 1), (8, -1.9, 2)]  # as vLLM joins pieces: the drawn one stands once


def params(**asked):
    """Sampling parameters, as vLLM has them where nothing is said."""
    nothing = ("logit_bias", "allowed_token_ids", "trace_decode_token_ids", "watermarking", "structured_outputs")
    none = ("thinking_token_budget", "logprobs", "prompt_logprobs", "logprob_token_ids")
    said = {
        **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_p"), 0.0),
        **dict.fromkeys((*nothing, *none)),
        **{"max_tokens": 9, "min_tokens": 0, "bad_words": [], "repetition_penalty": 1.0},
        **{"n": 1, "temperature": 0.7, "top_p": 0.9, "top_k": -1, "output_kind": Kind.FINAL_ONLY},
    }
    return SimpleNamespace(**said | asked)


def output(rows, tokens, ended=None, steps=((2, 1),), cached=0, versions=1):
    """What vLLM gives of an answer with one choice."""
    metrics = SimpleNamespace(per_step_drafted=[d for d, _ in steps], per_step_accepted=[a for _, a in steps])
    choice = SimpleNamespace(
        index=0,
        token_ids=tokens,
        logprobs=rows,
        cumulative_logprob=-1.0,
        finish_reason=ended,
        weight_versions=[None] * versions,
        spec_decode_metrics=metrics,
    )
    return SimpleNamespace(prompt_token_ids=[1, 2, 3], num_cached_tokens=cached, outputs=[choice])


def tap(**keys):
    """A tap, and what it handed on."""
    seen = []
    return Tap(replace(LLM, **keys), lambda completion, tenant: seen.append((completion, tenant)), MAIN), seen


def gathered(made, asked, outputs, during=lambda: None):
    """What one request gives: its tokens come, and ``during`` happens meanwhile."""
    ASKED.set(Asked(b"acme", "sql", capture=True))
    gathering = made.begin("r1", asked, {"prompt_token_ids": [1, 2, 3]}, None)
    for each in outputs:
        made.told(gathering, asked, each)
        during()
    made.end(gathering)


@pytest.mark.parametrize("rows", [[DRAWN_FIRST, DRAWN_LAST], [JOINED, DRAWN_LAST], [DRAWN_LAST, JOINED]])
def test_the_likeliest_tokens_are_taken_from_every_form(rows):
    """Flat, joined from pieces, and as mappings: the same two tokens at each position, likeliest first."""
    for form in (Flat(rows), list(Flat(rows))):
        tokens, logs = rows_of(form, 2)
        assert tokens.tolist() == [[5, 8], [5, 8]]
        assert logs.tolist() == [[[-0.2, -1.9], [-0.1, -3.0]][DRAWN_LAST is row] for row in rows]


def test_more_was_asked_for_than_is_captured():
    """A caller who asks for three gets three, and the record has two."""
    rows = Flat([[*DRAWN_FIRST, (2, -5.0, 3)]])
    assert rows_of(rows, 2)[0].tolist() == [[5, 8]]
    assert [list(row) for row in cut_rows(rows, 3)] == [[5, 8, 2]]


@pytest.mark.parametrize(("most", "kept"), [(0, [[9]]), (1, [[9, 5]]), (2, [[9, 5, 8]]), (-1, [[9, 5, 8]])])
def test_a_caller_gets_as_many_as_were_asked_for(most, kept):
    """The drawn token always, and no more of the likeliest than were asked for."""
    assert [list(row) for row in cut_rows(Flat([DRAWN_LAST]), most)] == kept
    assert cut_rows(Flat([DRAWN_LAST]), None) is None


@pytest.mark.parametrize("kind", Kind)
def test_an_answer_is_gathered_however_it_comes(kind):
    """All at once, all so far again and again, or piece by piece: the same record, which the log takes."""
    first, last = (DRAWN_FIRST, 5), (DRAWN_LAST, 9)
    whole = output(Flat([first[0], last[0]]), [5, 9], "stop")
    come = {
        Kind.FINAL_ONLY: [whole],
        Kind.CUMULATIVE: [output(Flat([first[0]]), [5]), whole],
        Kind.DELTA: [output(Flat([first[0]]), [5]), output(Flat([last[0]]), [9], "stop")],
    }[kind]
    made, seen = tap()
    gathered(made, params(output_kind=kind), come)
    [(completion, tenant)] = seen
    header = unpack(pack(completion)).header
    assert (tenant, header.domain, header.target, header.id) == (b"acme", "sql", bytes.fromhex("ab" * 32), "r1")
    assert (header.branch, header.epoch, header.seq, header.ended, header.flags) == ("main", 1, 7, "stop", ())
    assert (header.temperature, header.top_p, header.top_k) == (0.7, 0.9, 0)
    assert completion.output.tolist() == [5, 9] and completion.ids.tolist() == [[5, 8], [5, 8]]
    assert completion.drafted.tolist() == [2] and completion.accepted.tolist() == [1]
    assert made.counts.seen == made.counts.captured == 1


@pytest.mark.parametrize(
    ("during", "versions", "flags"),
    [(False, 1, ()), (True, 1, ("swap",)), (False, 2, ("swap",))],
)
def test_what_a_swap_touches_is_flagged(during, versions, flags):
    """Where one began or ended meanwhile, and where vLLM itself names two versions."""
    made, seen = tap()

    def swap():
        with made.turning():
            pass

    come = [output(Flat([DRAWN_FIRST]), [5], "stop", steps=(), versions=versions)]
    gathered(made, params(), come, swap if during else lambda: None)
    assert seen[0][0].header.flags == flags


def test_a_request_that_begins_or_ends_within_a_swap_is_flagged():
    """Its steps may be of either draft."""
    made, seen = tap()
    come = [output(Flat([DRAWN_FIRST]), [5], "stop", steps=())]
    with made.turning():
        gathered(made, params(), come)
    assert seen[0][0].header.flags == ("swap",)


@pytest.mark.parametrize(
    ("asked", "prompt", "come", "reason"),
    [
        ({}, {"prompt_token_ids": [1]}, [], "no_tokens"),
        ({"logprob_token_ids": [4]}, {"prompt_token_ids": [1]}, [], "own_tokens"),
        ({"max_tokens": 1}, {"prompt_token_ids": [1]}, [], "one_token"),
        ({}, iter(()), [], "streamed_prompt"),
        ({"temperature": 200.0}, {"prompt_token_ids": [1]}, [output(Flat([DRAWN_FIRST]), [5], "stop")], "temperature"),
        ({}, {"prompt_token_ids": [1]}, [output(Flat([DRAWN_FIRST]), [5, 9], "stop")], "no_log_probabilities"),
    ],
)
def test_what_gives_no_record_is_counted(asked, prompt, come, reason):
    """Each with its reason; seen is captured and dropped together."""
    made, seen = tap()
    ASKED.set(Asked(b"acme", "", capture=True))
    gathering = made.begin("r1", params(**asked), prompt, None)
    for each in come:
        made.told(gathering, params(**asked), each)
    made.end(gathering)
    assert seen == [] and made.counts.dropped == {reason: 1} and made.counts.seen == 1


@pytest.mark.parametrize(
    ("asked", "adapter", "kind", "flags"),
    [
        ({}, None, "token", ()),
        ({}, object(), "token", ("adapter",)),
        ({}, None, "multimodal", ("image",)),
        ({"structured_outputs": object()}, None, "token", ("grammar",)),
        ({"min_p": 0.1, "logit_bias": {1: 2.0}}, None, "token", ("min_p", "bias")),
        ({"repetition_penalty": 1.1}, None, "token", ("penalty",)),
        ({"watermarking": True}, None, "token", ("bias",)),
        ({"thinking_token_budget": 0}, None, "token", ("bias",)),
        ({"allowed_token_ids": [3]}, None, "token", ("bias",)),
    ],
)
def test_what_a_draft_cannot_learn_is_flagged(asked, adapter, kind, flags):
    """By what the request asks for."""
    assert flags_of(params(**asked), {"type": kind, "prompt_token_ids": [1]}, adapter) == flags


@pytest.mark.parametrize(
    ("capture", "asked", "reason"),
    [
        ("none", Asked(b"a", "", capture=True), "off"),
        ("all", Asked(b"a", "", capture=False), "opted_out"),
        ("all", Asked(b"a", "", capture=True), ""),
        (("b", "c"), Asked(b"a", "", capture=True), "tenant"),
        (("b", "a"), Asked(b"a", "", capture=True), ""),
        (("b",), Asked(b"\xff", "", capture=True), "tenant"),
        ("all", Asked(), "opted_out"),
    ],
)
def test_whose_completions_are_captured(capture, asked, reason):
    """As the pipeline says, and unless the request says no."""
    assert why_not(asked, replace(LLM, capture=capture)) == reason


def test_counts_of_steps_and_sums_are_taken_away():
    """A caller who asked for no log probabilities gets none, nor their sum; steps only where they may be shown."""
    for shown in (False, True):
        made, _ = tap(show_counts=shown)
        given = output(Flat([DRAWN_FIRST]), [5], "stop")
        gathered(made, params(), [given])
        [choice] = given.outputs
        assert (choice.logprobs, choice.cumulative_logprob) == (None, None)
        assert (choice.spec_decode_metrics is not None) == shown


def test_log_probabilities_stay_in_order_as_float16():
    """None is above 0, none is infinite, and rows never rise."""
    logs = np.array([[1e-7, -0.5, -7.0001, -7.0002, -np.inf, -np.inf]])
    _, kept = small(np.arange(6)[None], logs)
    assert kept.dtype == np.float16 and np.isfinite(kept).all() and kept.max() <= 0 and (np.diff(kept) <= 0).all()


def test_a_domain_is_what_records_take():
    """Cut to 64 characters, without those that cannot be printed."""
    assert printable("s\nql\x00\ud800" + "x" * 100, 64) == "sql" + "x" * 61


@pytest.mark.parametrize(("said", "kept"), [("i" * 5000, "i" * 128), ("a\ud800\n", "a"), ("", "-0"), ("\x00", "-0")])
def test_an_id_that_the_caller_names_fits_a_record(said, kept):
    """However long it is, and whatever is in it: the log takes the record."""
    made, seen = tap()
    ASKED.set(Asked(b"acme", "", capture=True))
    gathering = made.begin(said, params(), {"prompt_token_ids": [1, 2, 3]}, None)
    made.told(gathering, params(), output(Flat([DRAWN_FIRST]), [5], "stop", steps=()))
    made.end(gathering)
    assert unpack(pack(seen[0][0])).header.id == kept


def test_several_choices_that_come_together_count_as_cached():
    """vLLM tells of one of them alone what it found; the others may have found the prompt of the first."""
    made, seen = tap()
    whole = output(Flat([DRAWN_FIRST]), [5], "stop", steps=())
    other = output(Flat([DRAWN_LAST]), [9], "stop", steps=())
    other.outputs[0].index = 1
    whole.outputs += other.outputs
    gathered(made, params(n=2), [whole])
    assert [completion.header.id for completion, _ in seen] == ["r1-0", "r1-1"]
    assert {completion.header.cached for completion, _ in seen} == {1}


def test_a_choice_that_did_not_end_was_left():
    """Its caller went: the record ends by abort and has no steps."""
    made, seen = tap()
    gathered(made, params(), [output(Flat([DRAWN_FIRST]), [5])])
    assert seen[0][0].header.ended == "abort" and len(seen[0][0].drafted) == 0
    assert Choice().ended == ""


@pytest.mark.parametrize("seq", [6, 7])
def test_a_draft_that_is_not_newer_is_refused(seq):
    """Of the same branch; another branch is another line."""
    with pytest.raises(SwapRefusedError, match="not newer than main.3"):
        refuse_older(Identity("main", 1, seq, "main.2"), MAIN)
    refuse_older(Identity("main", 1, 8, "main.4"), MAIN)
    refuse_older(Identity("other", 0, 1, "other.1"), MAIN)
