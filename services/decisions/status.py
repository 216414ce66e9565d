"""What an operator sees: `millrace status` and `millrace log`. Nothing is written here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from millrace.learners.drift.alarms import Alarm, DriftConfig
from millrace.services.config.names import BRANCH
from millrace.services.decisions.alarms import alarms
from millrace.services.decisions.exclusions import exclusion_words
from millrace.services.errors import NotReadyError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.expiry import expiry_facts
from millrace.services.pipeline.instance import Instance, require_branch
from millrace.services.pipeline.succession import live_branch
from millrace.streams.branch.branch import fates_of, load_part
from millrace.streams.branch.forks import excluded, learner_of
from millrace.streams.branch.outputs import Output, last_output
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Mark, decode_entry
from millrace.streams.journal.journal import Cursor, Summary, summarise
from millrace.streams.journal.store import read_checkpoint
from millrace.streams.state.notices import flat

COUNTED = ("learned", "passed", "rejected")
LET_GO = ("idle", "crowded")  # of what is counted of entities: those whose window was dropped, and why
STILL = "stand still as {} has them; `millrace serve --follow BRANCH` moves them again"
LOWEST = 20  # labels whose recall is shown, at most: those with the lowest


def status(instance: Instance, branch: str) -> dict[str, Any]:
    """Where a branch is, how far it is behind, where every record went, what it scores.

    Raises: MillraceError where there is no such branch.
    """
    require_branch(instance, branch)
    backends = instance.backends(branch)
    output = last_output(backends.producer, instance.loaded.pipeline.name, branch)  # before the journal, which is ahead of it
    summary = summarise(backends.journal, branch)
    ends = {tp: high for tp, (_, high) in backends.source.bounds().items()}
    facts: dict[str, Any] = {"pipeline": instance.loaded.pipeline.name, "branch": branch}
    facts |= {"epoch": summary.end.epoch, "seq": summary.end.seq, "version": summary.newest_version}
    facts |= _origin(instance, summary)
    facts |= {"lag_rows": sum(high - summary.position.get(tp, 0) for tp, high in ends.items())}
    facts |= expiry_facts(instance) | _watched(instance.loaded.pipeline.drift)
    facts |= _merged(instance, branch)
    if output is not None:
        facts |= {"records": output.records, **output.counts, "waiting": output.waiting} | shares(output.scores)
        facts |= _late(output) | _alarm(output.newest_alarm) | _held_out(output) | flat(output.noticed)
        facts |= {f"memory_{name}": value for name, value in output.memory.items()}
        facts |= {f"{what}_{name}": count for what, name, count in of_entities(output.entities)}
    elif "records" not in facts and summary.marks:  # followed by nobody, it lets nothing out but its marks
        facts |= fates_of(instance.store(), summary.marks[-1])
    facts |= _acted(summary) | _open_alarms(instance, branch)
    facts |= {f"recall_{label}": share for label, share in recall(instance, summary.marks).items()}
    ledger = instance.ledger()
    facts |= {f"alias_{name}": version for name, version in sorted(ledger.aliases.items())}
    facts |= {
        f"differs_{version}": certificate.verdict
        for version, certificate in ledger.certificates.items()
        if not certificate.holds
    }
    facts |= {"store_bytes": instance.store().bytes_of(branch)} | _window(instance, summary.marks)
    serves = ledger.serving.items()
    if instance.loaded.pipeline.entity is not None:
        facts |= {f"windows_{name}": STILL.format(target.version) for name, target in serves if target.version is not None}
    return facts | {f"serves_{name}": target.version or f"newest of {target.follow}" for name, target in serves}


def of_entities(figures: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
    """Of an output's figures what each counts, its name, and the count: events by what became of them, apart from entities.

    >>> list(of_entities({"kept": 3, "events": 9, "older": 1, "idle": 2}))
    [('entities', 'kept', 3), ('entity_events', 'moved', 9), ('entity_events', 'older', 1), ('entities_let_go', 'idle', 2)]
    """
    for name, count in figures.items():
        what = "entities" if name == "kept" else "entities_let_go" if name in LET_GO else "entity_events"
        yield what, "moved" if name == "events" else name, count


def shown_branch(instance: Instance) -> str:
    """The live branch; before anything is served the first one."""
    branch = live_branch(Archive(instance), instance.ledger()) if instance.branches() else None
    return branch if branch is not None and instance.has_branch(branch) else BRANCH


def _merged(instance: Instance, branch: str) -> dict[str, Any]:
    """What the shards of a merging branch add up to, and how far each is; nothing for any other branch."""
    shards = [shard for shard in instance.shards(branch) if shard != branch and shard in instance.branches()]
    if not shards:
        return {}
    shard_facts = [status(instance, shard) for shard in shards]
    added_up = ("labels_", "clipped_", "far_out_", "outside_")
    labels = sorted({name for facts_of_shard in shard_facts for name in facts_of_shard if name.startswith(added_up)})
    facts = {
        name: sum(facts_of_shard.get(name, 0) for facts_of_shard in shard_facts)
        for name in ("lag_rows", "records", *COUNTED, "waiting", *labels)
    }
    return facts | {
        f"shard_{facts_of_shard['branch']}": f"seq {facts_of_shard['seq']}, {facts_of_shard.get('records', 0):,} records"
        for facts_of_shard in shard_facts
    }


def _origin(instance: Instance, summary: Summary) -> dict[str, Any]:
    """Where a fork begins, and what it leaves out; whether the branch has ended."""
    fork, ended_by = summary.fork, summary.end.ended
    facts: dict[str, Any] = {}
    if fork is not None and fork.parent is not None:
        facts = {"parent": f"{fork.parent.branch}.{fork.parent.seq}"}
        if fork.learner_from != fork.join_from:
            facts["learner_of"] = str(learner_of(instance.store(), fork))
    if fork is not None and (fork.parent is not None or fork.exclude):
        left_out = excluded(instance.store(), summary)
        facts["excludes"] = "; ".join(map(exclusion_words, left_out)) or "nothing"
        if included_again := [exclusion_words(exclusion) for exclusion in fork.exclude if exclusion not in left_out]:
            facts["included_again"] = "; ".join(included_again)
    return facts | ({} if ended_by is None else {"ended": ended_by.cause, "successor": ended_by.successor})


def scored(instance: Instance, branch: str) -> tuple[int, dict[str, float | None], dict[str, float]]:
    """Rows that were answered and learned, the means of what that scored, and the recall of labels, as ``status`` names them.

    Raises: MillraceError where there is no such branch; NotReadyError where it has let nothing out.
    """
    require_branch(instance, branch)
    backends = instance.backends(branch)
    output = last_output(backends.producer, instance.loaded.pipeline.name, branch)
    if output is None:
        raise NotReadyError(f"Branch {branch} has let no scores out yet. Ask for them when it has learned.")
    return (
        output.scores["rows"],
        shares(output.scores) | _as_served(output),
        recall(instance, summarise(backends.journal, branch).marks),
    )


def recall(instance: Instance, marks: Sequence[Mark]) -> dict[str, float]:
    """By label, as of the newest checkpoint that can be read: the share of its rows that was answered right, by the worker just
    before it learned them or as they were served.
    """
    names = ["scores"] if instance.loaded.pipeline.labels is None else ["scores", "served_scores"]
    for mark in reversed(marks):
        try:
            parts = [load_part(instance.store(), mark, name) for name in names]
        except (DamageError, KeyError):  # KeyError: the pipeline file has got its table [labels] since
            continue
        hits, rows = Counter[str](), Counter[str]()
        for scores in parts:
            hits.update(dict(zip(scores.get("labels", []), scores.get("label_hits", []), strict=True)))
            rows.update(dict(zip(scores.get("labels", []), scores.get("label_rows", []), strict=True)))
        shares_of = {label: hits[label] / count for label, count in rows.items()}
        return dict(sorted(shares_of.items(), key=lambda label_share: label_share[1])[:LOWEST])
    return {}


def _watched(drift: DriftConfig | None) -> dict[str, Any]:
    """What the budget of false alarms promises, and what the detector does not see at it."""
    if drift is None:
        return {}
    rows = f"{drift.false_alarm_rows:,}"
    facts = {"drift": f"{drift.detector}, one false alarm in {rows} rows where losses are independent, more where they are not"}
    share = f"{drift.detector} misses {drift.missed:.0%} of the changes of an error rate from 10 % to 30 % at this budget"
    return facts | ({"drift_missed": share} if drift.missed else {})


def _alarm(alarm: Alarm | None) -> dict[str, Any]:
    """The newest alarm that something got worse, in words."""
    if alarm is None:
        return {}
    new = f"; classes first seen then: {', '.join(alarm.new_classes)}" if alarm.new_classes else ""
    onset = f"worse since about row {alarm.onset_rows:,}, noticed at row {alarm.rows:,}"
    return {"alarm": f"{alarm.detector}: {onset}, loss {alarm.before:.3f} before and {alarm.after:.3f} since{new}"}


def _open_alarms(instance: Instance, branch: str) -> dict[str, str]:
    """Those that stand, by their ids; where one is being written down just now, that."""
    if instance.loaded.pipeline.drift is None:
        return {}
    try:
        standing = alarms(instance, branch)
    except NotReadyError as error:
        return {"open_alarms": str(error)}
    return (
        {"open_alarms": ", ".join(entry.raised.id for entry in standing if entry.closing is None) or "none"} if standing else {}
    )


def _window(instance: Instance, marks: Sequence[Mark]) -> dict[str, int]:
    """What the rows weigh that are kept to be learned again, in memory and in each checkpoint; empty where none are."""
    for mark in reversed(marks):
        try:
            parts = read_checkpoint(instance.store(), mark.branch, str(mark.checkpoint)).parts
        except DamageError:
            continue
        weighs = sum(part.bytes for name, part in parts.items() if name.partition(".")[0] == "window")
        return {"window_bytes": weighs} if weighs else {}
    return {}


def _acted(summary: Summary) -> dict[str, Any]:
    """What the newest alarm that was acted on led to, in words."""
    act = summary.act
    if act is None:
        return {}
    version = next((mark.version for mark in summary.marks if mark.version is not None and mark.state_seq >= act.seq), None)
    return {"act": f"{act.description} at seq {act.seq}, after {act.cause} {act.evidence}; version: {version or 'on its way'}"}


def _held_out(output: Output) -> dict[str, Any]:
    """What the learner kept and lost, by the rows that are never learned."""
    figures = dict(output.held_out or {})
    by_class = {f"held_out_recall_{label}": share for label, share in figures.pop("recall", {}).items()}
    return {f"held_out_{name}": value for name, value in figures.items()} | by_class


def _late(output: Output) -> dict[str, Any]:
    """What late labels came to, and how good the answers were as they were served."""
    if output.labels is None or output.served_scores is None:
        return {}
    rows = {"scored_by_worker": output.scores["rows"], "scored_as_served": output.served_scores["rows"]}
    return {f"labels_{name}": count for name, count in output.labels.items()} | rows | _as_served(output)


def _as_served(output: Output) -> dict[str, float | None]:
    """How good the answers were as they were served; nothing where labels stand in the rows."""
    return {f"served_{name}": value for name, value in shares(output.served_scores or {"rows": 0}).items()}


def shares(scores: dict[str, Any]) -> dict[str, float | None]:
    """Means of the totals in an output: shares of rows for classes, mean errors for numbers."""
    rows = scores["rows"]
    if "domains" in scores:
        return alphas(scores)
    return {
        name.replace("correct", "accuracy"): _mean(total, rows)
        for name, total in scores.items()
        if name != "rows" and total is not None
    }


def alphas(scores: dict[str, Any]) -> dict[str, float | None]:
    """Accepted of tested positions, of a draft's own replay and as served: of all completions, and by domain.

    ``alpha_`` with nothing behind it is of completions that name no domain, for a domain may have any name.
    """
    named = {"": scores} | {f"_{name}": domain for name, domain in scores["domains"].items()}
    shares_of: dict[str, float | None] = {}
    for suffix, sums in named.items():
        for before in ("", "served_"):
            tested = sums[f"{before}tested"]
            shares_of[f"{before}alpha{suffix}"] = sums[f"{before}accepted"] / tested if tested else None
    return shares_of


def _mean(total: float | list[float], rows: int) -> float | None:
    values = total if isinstance(total, list) else [total]
    return sum(values) / (rows * len(values)) if rows and values else None


def journal_lines(instance: Instance, branch: str) -> Iterator[dict[str, Any]]:
    """Every entry of a branch's journal, dead ones too, each with whether it counts.

    Raises: MillraceError where there is no such branch, DamageError where an entry is damaged.
    """
    require_branch(instance, branch)
    cursor = Cursor()
    for offset, raw in instance.journal(branch).read(0):
        entry = decode_entry(raw, f"Branch {branch}: the journal entry at offset {offset}")
        content = msgspec.to_builtins(entry)
        identity = {name: content.pop(name) for name in ("kind", "seq", "epoch")}
        yield {"offset": offset, "counts": cursor.take(entry), **identity, "said": content}


def ledger_lines(instance: Instance) -> Iterator[dict[str, Any]]:
    """Every decision of the ledger that counts."""
    for decision in instance.ledger().counted:
        yield msgspec.to_builtins(decision)
