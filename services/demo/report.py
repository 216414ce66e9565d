"""The report of a story: text from numbers, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from millrace.services.demo.callers import CallLog
from millrace.services.demo.evidence import MEASURES, Evidence, Joined, Raised, Resumed, windows
from millrace.services.demo.night import CALLED, POISON_ROWS, PRODUCER, Night

FATES = {"labels": "labels that met their rows"}
SPELLED_OUT = 12  # recalls, at most; of more classes the lowest


@dataclass(frozen=True, slots=True)
class Killed:
    """A trainer that was ended by SIGKILL, and the one that followed it."""

    pid: int
    at_ms: int  # since 1970
    next_pid: int | None


@dataclass(frozen=True, slots=True)
class StoryResults:
    """All that a report is made of."""

    title: str
    evidence: Evidence
    kills: list[Killed]
    asked: CallLog
    verdict: dict[str, Any]  # what `millrace verify --output json` printed
    window: int  # rows of the windowed scores


def text(results: StoryResults) -> str:
    """What happened, what it scored, where every record went, and whether it was proved."""
    evidence = results.evidence
    parts = [
        results.title,
        "\n".join(_columns([("TIME", "ROW", "WHAT HAPPENED"), *_happened(results)], "rrl")),
        "\n".join(_columns(_scored(results), "lrrr")),
        *([_recalls(evidence.recall)] if evidence.recall else []),
        f"ANSWERED {_answered(results)}\nCOUNTED  {_counted(evidence)}\nVERIFY   {_verified(results.verdict)}",
    ]
    return "\n\n".join(parts)


def _answered(results: StoryResults) -> str:
    """What callers heard on the held-out rows while it learned."""
    calls = results.asked
    if not calls.replies:
        return "nothing was asked: no rows are held out"
    first, last = calls.tenth(last=False), calls.tenth(last=True)
    share = results.evidence.task == "classify"
    grown = (
        f"{first:.0%} right in the first tenth, {last:.0%} in the last" if share else f"error {first:,.1f}, then {last:,.1f}"
    )
    return (
        f"{calls.count('http'):,} requests over HTTP and {calls.count('grpc'):,} over gRPC, {len(calls.failed)} failed; "
        f"{grown}; stale by {calls.staleness_ms:.0f} ms (median)"
    )


def _happened(results: StoryResults) -> list[tuple[str, str, str]]:
    """Time since the first record, row and event, in order of time."""
    evidence = results.evidence
    events = [
        (class_joined.at_ms, class_joined.row, f"{_listed(class_joined.labels)} {_joins(class_joined.labels)}")
        for class_joined in evidence.joined
    ]
    for kill, resumed in zip(results.kills, evidence.resumed, strict=True):
        happened = f"kill -9 of trainer {kill.pid}; {kill.next_pid} goes on from {_from(resumed)}"
        events.append((kill.at_ms, resumed.row, happened))
    events += [(raised.at_ms, raised.alarm.rows, _raised(raised, evidence.joined)) for raised in evidence.raised]
    last = evidence.outputs[-1]
    events.append((last.clock_ms, evidence.rows, f"the last row; {len(evidence.versions)} versions were marked on the way"))
    return [(f"{(at_ms - evidence.started_ms) / 1000:.1f} s", f"{row:,}", happened) for at_ms, row, happened in sorted(events)]


def _raised(raised: Raised, joined: Sequence[Joined]) -> str:
    """An alarm in words: whose, since when, whether it goes with a class never seen, and what followed."""
    alarm = raised.alarm
    first = {label: joining.row for joining in joined for label in joining.labels}
    onset = f"since about row {alarm.onset_rows:,}: loss {alarm.before:.2f}, then {alarm.after:.2f}"
    finding = f"{alarm.detector} {alarm.direction} {onset}"
    if alarm.direction != "worse":
        return finding
    new = [f"class {name} had never been seen before row {first[name]:,}" for name in alarm.new_classes if name in first]
    explanation = f"; {', '.join(new)}, so it is no fault" if new else "; no class is new, so look who sent that"
    return f"ALARM: {finding}{explanation}" + (f"; version {raised.version} marked" if raised.version else "")


def night_text(night: Night) -> str:
    """The night call: what was noticed when, what was done about it, how long it took, and what came out."""
    alarm, replayed = night.alarm, night.replayed
    new = f"; it goes with {', '.join(alarm.new_classes)}" if alarm.new_classes else "; it goes with no new class"
    onset = f"worse since about row {alarm.onset_rows:,} (in truth {night.poison[0]:,}){new}"
    mislabelled = f"{POISON_ROWS} served digits, every {CALLED[0]} as an {CALLED[1]}"
    happened = [
        (0.0, night.poison[0], f"producer {PRODUCER} begins to label {mislabelled}"),
        (night.alarm_s, alarm.rows, f"ALARM of the {alarm.detector} after {night.bad_rows} wrong labels: {onset}"),
        (night.rollback.done_s, night.rollback.row, f"rollback: every answer is {night.version}'s"),
        (
            night.replay.done_s,
            night.replay.row,
            f"replay without {PRODUCER} as {replayed['branch']}: {replayed['certificate']}",
        ),
        (night.take_over.done_s, night.take_over.row, f"take-over: every answer is {replayed['branch']}'s"),
    ]
    times = [("TIME", "ROW", "THE NIGHT CALL"), *((f"{at_s:.1f} s", f"{row:,}", event) for at_s, row, event in happened)]
    scores = ", ".join(f"{share:.0%} {when}" for when, share in night.scores.items())
    entries = " and ".join(f"{count} journal entries of {branch}" for branch, count in night.proved.items())
    return "\n".join(_columns(times, "rrl")) + (
        f"\n\nTIMINGS  {_timings(night)}"
        f"\nANSWERED {night.answers} honest requests, 0 failed; right: {scores}"
        f"\nPOISONED of the {night.asked_again} digits {CALLED[0]} that were held out by day, the poisoned model calls "
        f"{night.miscalled[0]} an {CALLED[1]}, the repaired one {night.miscalled[1]}"
        f"\nREPAIRED {night.differences[0]:.1e} of its sums from a model that learns the honest labels alone; the poisoned "
        f"one {night.differences[1]:.1e}"
        f"\nVERIFY   proved: {entries}"
    )


def _timings(night: Night) -> str:
    """How long each command took until the last answer was its."""
    replayed = night.replayed
    rate = replayed["records"] / replayed["seconds"]
    return (
        f"rollback {night.rollback.seconds:.1f} s to the last replica; replay {night.replay.seconds:.1f} s with plan and proof "
        f"({replayed['records']:,} records, {rate:,.0f} records/s; it learns {night.plan['rows_per_s']:,} rows/s); "
        f"take-over {night.take_over.seconds:.1f} s"
    )


def _listed(labels: tuple[str, ...]) -> str:
    return f"class{'es' if len(labels) > 1 else ''} {', '.join(labels)}"


def _joins(labels: tuple[str, ...]) -> str:
    return "join" if len(labels) > 1 else "joins"


def _from(resumed: Resumed) -> str:
    start = "the beginning" if resumed.checkpoint_seq is None else f"the checkpoint of seq {resumed.checkpoint_seq}"
    return f"{start}, folding {resumed.refolded} step{'s' * (resumed.refolded != 1)} again"


def _scored(results: StoryResults) -> list[tuple[str, ...]]:
    """The measures as rows: over the whole stream, over its last window, on the held-out rows."""
    evidence, measures = results.evidence, MEASURES[results.evidence.task]
    totals, late = evidence.totals[-1], windows(evidence.totals, results.window)[-1]
    number = "{:.3f}" if totals[1] < 100 * totals[0] else "{:,.1f}"
    tested = evidence.versions[-1].score if evidence.versions else None
    head = "ACCURACY" if evidence.task == "classify" else "MEAN ABSOLUTE ERROR"
    lines: list[tuple[str, ...]] = [
        (head, "WHOLE STREAM", f"LAST {late[1]:,.0f} ROWS", f"HELD OUT ({evidence.held_out:,} ROWS)")
    ]
    for at, (_, name) in enumerate(measures, start=1):
        held_out_score = number.format(tested) if at == 1 and tested is not None else "-"
        lines.append((name, number.format(totals[at] / totals[0]), number.format(late[at + 1]), held_out_score))
    return lines if evidence.held_out else [line[:3] for line in lines]


def _recalls(recall: dict[str, float]) -> str:
    listed, omitted = list(recall.items()), ""
    if len(listed) > SPELLED_OUT:
        listed = sorted(listed, key=lambda pair: pair[1])[:SPELLED_OUT]
        omitted = f" (the lowest {SPELLED_OUT} of {len(recall)})"
    return f"RECALL{omitted}  " + "  ".join(f"{label}: {share:.2f}" for label, share in listed)


def _counted(evidence: Evidence) -> str:
    last = evidence.outputs[-1]
    fates = ", ".join(f"{count:,} {FATES.get(fate, fate)}" for fate, count in last.counts.items())
    repeated = f"; {evidence.repeats} outputs came again after a kill and count once" if evidence.repeats else ""
    return f"{evidence.sent:,} records in the log = {fates}, {last.waiting:,} waiting{repeated}"


def _verified(verdict: dict[str, Any]) -> str:
    return (
        f"proved: {verdict['entries']:,} journal entries and {verdict['records']:,} records folded again from the log, "
        f"{len(verdict['proved'])} marks came out the same; state {verdict['state_sha256'][:12]}"
    )


def _columns(rows: Iterable[tuple[str, ...]], sides: str) -> list[str]:
    """Cells under each other, to the left or right as ``sides`` says.

    >>> _columns([("a", "b"), ("long", "7")], "lr")
    ['a     b', 'long  7']
    """
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cut = [
        [cell.rjust(w) if side == "r" else cell.ljust(w) for cell, w, side in zip(line, widths, sides, strict=False)]
        for line in lines
    ]
    return ["  ".join(cells).rstrip() for cells in cut]
