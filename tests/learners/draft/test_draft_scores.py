"""Scores of a draft add up by domain, do not depend on how completions are cut, and give the loss that detectors watch."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny_draft

from millrace.learners.draft.completion import UNLEARNED, unpack
from millrace.learners.draft.config import DraftConfig
from millrace.learners.evaluation.drafts import PrequentialDrafts, seen_of
from millrace.learners.protocol import Batch
from millrace.services.decisions.status import alphas
from millrace.streams.parts import pack as pack_state
from millrace.streams.parts import unpack as unpack_state


def scored(*pieces: Batch) -> PrequentialDrafts:
    """Completions answered by an untaught draft."""
    scores, draft = PrequentialDrafts(), tiny_draft.draft().servable()
    for piece in pieces:
        scores.update(draft.predict_many(piece), (), seen_of(piece))
    return scores


def test_totals_are_those_of_the_completions_by_domain() -> None:
    """Summed up one by one from what was served and what was replayed."""
    batch = tiny_draft.lesson(1, 20, 0)
    answers, totals = tiny_draft.draft().predict_many(batch), scored(batch).totals
    completions = [unpack(value) for value in batch.sequences]
    for name in ("sql", "chat"):
        rows = [at for at, each in enumerate(completions) if each.header.domain == name]
        served = np.array([completions[at].served() for at in rows])
        domain = totals.domains[name]
        assert (domain.rows, domain.served_accepted, domain.served_tested) == (len(rows), *served.sum(axis=0))
        assert np.allclose((domain.accepted, domain.tested), answers[rows].sum(axis=0)) and domain.accepted > 0
    assert totals.rows == 20 and totals.tested == answers[:, 1].sum()


def test_cuts_change_nothing_and_a_state_goes_on() -> None:
    """In one piece, row by row, and with a state between."""
    batch = tiny_draft.lesson(2, 12, 0)
    whole, rows = scored(batch), scored(*(batch.rows(at, at + 1) for at in range(12)))
    assert np.isclose(whole.totals.accepted, rows.totals.accepted, rtol=1e-5)
    assert whole.totals.served_tested == rows.totals.served_tested
    first, second = scored(batch.rows(0, 5)), PrequentialDrafts()
    second.load(first.state())
    assert asdict(second.totals) == asdict(first.totals)


def test_a_restart_changes_no_bit() -> None:
    """A state's keys are sorted when it is packed: sums over domains do not depend on which of them came first."""
    seen, rng = np.empty(60, dtype=object), np.random.default_rng(1)
    seen[:] = [(f"domain {at * 7 % 20}", np.nan, np.nan) for at in range(60)]
    answers = rng.uniform(0.0, 9.0, (60, 2)) * [[0.1, 1.0]]
    whole, first, second = PrequentialDrafts(), PrequentialDrafts(), PrequentialDrafts()
    whole.update(answers, (), seen)
    first.update(answers[:30], (), seen[:30])
    second.load(unpack_state(pack_state(first.state()), "here"))
    second.update(answers[30:], (), seen[30:])
    assert second.totals == whole.totals and [*second.totals.domains] == [*whole.totals.domains]


def test_what_is_no_number_goes_into_no_sum() -> None:
    """It is counted, has the usual loss, and the scores can still be packed, as every checkpoint packs them."""
    scores, seen = PrequentialDrafts(), np.empty(2, dtype=object)
    seen[:] = [("", 1.0, 2.0), ("", 2.0, 3.0)]
    totals = scores.update(np.array([[np.nan, 4.0], [1.0, 2.0]]), (), seen)
    assert (totals.rows, totals.unscored, totals.accepted, totals.tested, totals.served_tested) == (2, 1, 1.0, 2.0, 3.0)
    assert scores.losses(np.array([[np.inf, 4.0], [1.0, 4.0]]), (), seen).tolist() == [0.5, 0.75]
    assert unpack_state(pack_state(scores.state()), "here") == scores.state()


def test_domains_beyond_64_are_one_further() -> None:
    """Callers name them, and each is a line of status and a label of a metric."""
    scores, seen = PrequentialDrafts(), np.empty(300, dtype=object)
    seen[:] = [(f"domain {at}", 1.0, 2.0) for at in range(300)]
    totals = scores.update(np.ones((300, 2)), (), seen)
    assert len(totals.domains) == 65 and totals.domains["other"].rows == 236 and totals.rows == 300


def test_as_served_only_what_is_replayed_too_counts() -> None:
    """What is not learned is not replayed, so it says nothing of the one and must say nothing of the other."""
    rng = np.random.default_rng(0)
    batch = tiny_draft.batch([tiny_draft.completion(rng, flags=("bias",)), tiny_draft.completion(rng)])
    totals = scored(batch).totals
    assert totals.rows == 2 and totals.served_tested == batch.y[1, 1] < batch.y[:, 1].sum()


def test_what_is_not_said_as_served_is_left_out_there_alone() -> None:
    """A cached prompt says nothing of the draft that served, and is replayed all the same."""
    rng = np.random.default_rng(0)
    batch = tiny_draft.batch([tiny_draft.completion(rng, cached=cached) for cached in (0, 1)])
    totals = scored(batch).totals
    assert totals.rows == 2 and totals.served_tested == batch.y[0, 1] and totals.tested > 0


def test_the_loss_is_what_was_not_accepted() -> None:
    """1 - accepted / tested of each; of a completion without a tested position, that of all before."""
    scores, seen = PrequentialDrafts(), np.empty(2, dtype=object)
    seen[:] = [("", 1.0, 2.0), ("", np.nan, np.nan)]
    answers = np.array([[1.0, 4.0], [0.0, 0.0]])
    assert scores.losses(answers, (), seen).tolist() == [0.75, 0.0]
    scores.update(answers, (), seen)
    assert scores.losses(answers, (), seen).tolist() == [0.75, 0.75] and scores.totals.served_tested == 2.0


@pytest.mark.parametrize(
    "key", [{"loss": "mse"}, {"accepted_weight": 1.5}, {"rate": 0.0}, {"recent_share": 1.0}, {"updates": 0}, {"draws": 2.5}]
)
def test_a_setting_out_of_range_is_named(key: dict) -> None:
    """With what it may be."""
    with pytest.raises(ValueError, match=f"{next(iter(key))} = .* must be"):
        DraftConfig(**key)


def test_what_cannot_be_learned_is_counted_by_why_and_changes_nothing() -> None:
    """Flags, another target, and more tokens than the draft's context of 64 less k: an engine has nothing drafted there."""
    rng, draft = np.random.default_rng(1), tiny_draft.draft(step_completions=1)
    long = tiny_draft.completion(rng)
    fits, too_long = (np.zeros(tokens - tiny_draft.K - len(long.output), np.uint32) for tokens in (64, 65))
    completions = [
        *[tiny_draft.completion(rng, flags=(flag, "swap")) for flag in UNLEARNED],
        tiny_draft.completion(rng, target=bytes(32)),
        replace(long, prompt=too_long),
    ]
    before = {name: weight.detach().clone() for name, weight in draft.weights.items()}
    draft.learn_many(tiny_draft.batch(completions))
    assert all(weight.equal(before[name]) for name, weight in draft.weights.items()) and draft.rows == 0
    assert draft.noticed() == {"skipped_steps": 0, "flagged": 6, "other_target": 1, "too_long": 1, "not_finite": 0}
    assert draft.left_out == 8
    assert draft.predict_many(tiny_draft.batch(completions)).tolist() == [[0.0, 0.0]] * 8
    assert draft.predict_many(tiny_draft.batch([replace(long, prompt=fits)]))[0, 1] > 0
    draft.learn_many(tiny_draft.batch([tiny_draft.completion(rng, flags=("swap",))]))
    assert draft.rows == 1 and not all(weight.equal(before[name]) for name, weight in draft.weights.items())


def test_what_names_no_domain_is_told_from_any_name() -> None:
    """Even from a domain that is called unnamed."""
    sums = {"accepted": 1.0, "tested": 2.0, "served_accepted": 0.0, "served_tested": 0.0}
    scores = sums | {"domains": {"": sums, "unnamed": sums | {"accepted": 2.0}}}
    named = alphas(scores)
    assert (named["alpha_"], named["alpha_unnamed"], named["alpha"], named["served_alpha_"]) == (0.5, 1.0, 0.5, None)
