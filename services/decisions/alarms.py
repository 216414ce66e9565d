"""`millrace alarms`: what the detectors of a pipeline have raised, which of it is open, and how one is closed.

An alarm stands in the detectors' part of every state after it, under its id BRANCH.SEQ.NUMBER. It is open until the ledger
closes it. Closed is not deleted. Of more than 512 the oldest become one, BRANCH.SEQ.0, from the earliest of their onsets on; it
is open, whatever of them was closed, until it is closed itself.

What closes an alarm: an operator who has looked, everywhere; and for what goes on alone a rollback of the learner, or a replay
that leaves out records from after the onset, where that begins before the onset. An undo, which goes on from elsewhere, has it
open again. Nothing else closes one. That answers are good again closes nothing: a model
that has learned poison among good rows answers well, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from millrace.learners.drift.alarms import Alarm
from millrace.learners.errors import BadInputError
from millrace.services.decisions.descent import Stretch, descent, judged_branch
from millrace.services.errors import NotCountedError, NotReadyError
from millrace.services.moments import moment
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.user import user_name
from millrace.streams.branch.branch import load_part
from millrace.streams.branch.outputs import OVERTAKEN, Output, outputs_of
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.ledger import Closing, Ledger, append_decision
from millrace.streams.state.drift import MOST_KEPT, RaisedAlarm, alarm_of, raised_alarms

Cause = Literal["operator", "take-over", "rollback"]
TAIL = 16 * OVERTAKEN  # outputs among which an alarm is looked for that no checkpoint has yet


@dataclass(frozen=True, slots=True)
class Standing:
    """An alarm, and whether it is closed."""

    raised: RaisedAlarm
    detector: str  # which kind, such as adwin
    closing: Closing | None

    @property
    def row(self) -> dict[str, Any]:
        """To show."""
        alarm, closing = self.raised.alarm, self.closing
        facts = {
            "alarm": self.raised.id,
            "state": "open" if closing is None else "closed",
            "watches": alarm.detector,
            "detector": self.detector,
            "onset_row": alarm.onset_rows,
            "noticed_row": alarm.rows,
            "loss_before": alarm.before,
            "loss_since": alarm.after,
            "new_classes": ", ".join(alarm.new_classes),
        }
        if closing is None:
            return facts | {"closed_by": "", "why": "", "closed_at": ""}
        by = closing.who if closing.cause == "operator" else f"{closing.who}, by a {closing.cause}"
        return facts | {"closed_by": by, "why": closing.why, "closed_at": moment(closing.when_ms)}


def raised_in(archive: Archive, branch: str) -> list[tuple[RaisedAlarm, str]]:
    """All that a branch's detectors have raised that something got worse, oldest first, each with the kind of detector.

    Raises: NotReadyError where one is being written down just now; DamageError where a journal is damaged.
    """
    if archive.instance.loaded.pipeline.drift is None:
        return []
    output_tail = _outputs(archive, branch)  # before the journal, which is ahead of it
    summary = archive.summary(branch)
    mark, part = _newest(archive, summary.marks)
    kind = str(part["detector"]) if part else archive.instance.loaded.pipeline.drift.detector
    known = raised_alarms(part)
    known = [*_without_ids(archive, branch, summary.marks, part, known), *known]
    marked = 0 if mark is None else mark.state_seq
    for output in output_tail:
        if marked < output.seq <= summary.end.seq:
            worse = [alarm for alarm in output.alarms if alarm.direction == "worse"]
            known += [RaisedAlarm(branch, output.seq, number, alarm) for number, alarm in enumerate(worse, 1)]
    act = summary.act
    if act is not None and act.cause == "detector" and act.seq > marked:
        step = int(act.evidence.rpartition(".")[2])
        if not any((alarm.branch, alarm.seq) == (branch, step) for alarm in known):
            raise NotReadyError(
                f"An alarm of {act.evidence} is being written down just now. Try again in a second, or name a VERSION; "
                "`millrace versions` lists them."
            )
    return [(alarm, kind) for alarm in known]


def _outputs(archive: Archive, branch: str) -> list[Output]:
    instance = archive.instance
    return outputs_of(instance.backends(branch).producer, instance.loaded.pipeline.name, branch, TAIL)


def _newest(archive: Archive, marks: Sequence[Mark]) -> tuple[Mark | None, dict[str, Any]]:
    """The newest mark whose detectors can be read, and their state; empty where nothing was watched."""
    for mark in reversed(marks):
        try:
            return mark, load_part(archive.instance.store(), mark, "detectors")
        except (DamageError, KeyError):  # KeyError: nothing was watched then
            continue
    return None, {}


def _without_ids(
    archive: Archive, branch: str, marks: Sequence[Mark], newest: dict[str, Any], listed: Sequence[RaisedAlarm]
) -> list[RaisedAlarm]:
    """Alarms that a release raised which gave no ids: each of its states has the newest one alone."""
    if not newest or newest["newest"] is None:
        return []
    own = [alarm.seq for alarm in listed if alarm.branch == branch]
    unlisted: dict[int, Alarm] = {}
    for mark in reversed(marks):
        if own and mark.state_seq >= own[0]:
            continue
        try:
            part = load_part(archive.instance.store(), mark, "detectors")
        except (DamageError, KeyError):
            continue
        if part["newest"] is None or "alarms" in part:
            break
        alarm = alarm_of(part["newest"])
        unlisted[alarm.rows] = alarm
    return [RaisedAlarm(branch, 0, rows, alarm) for rows, alarm in sorted(unlisted.items())]


def standing_in(archive: Archive, ledger: Ledger, stretches: Iterable[Stretch]) -> list[Standing]:
    """The alarms of a line of descent, oldest branch first, each as it stands there. Raises: as ``raised_in``."""
    found: dict[str, Standing] = {}
    stretches = list(stretches)
    through = [stretch.branch for stretch in stretches]
    for stretch in reversed(stretches):
        for branch in archive.instance.shards(stretch.branch):
            if archive.instance.has_branch(branch):
                for raised, kind in raised_in(archive, branch):
                    found.setdefault(raised.id, Standing(raised, kind, ledger.closing_of(raised.id, through)))
    return list(found.values())


def alarms(instance: Instance, branch: str | None) -> list[Standing]:
    """Of a branch and those that it comes from; None: by which the endpoint is judged. Raises: as ``raised_in``."""
    if not instance.branches():
        return []
    archive, ledger = Archive(instance), instance.ledger()
    branch = branch or judged_branch(archive, ledger)
    return [] if branch is None else standing_in(archive, ledger, descent(archive, branch))


def alarm(instance: Instance, name: str) -> Standing:
    """One, by its id, or by that of its step where it raised no other. Raises: BadInputError naming those that there are."""
    return _named(Archive(instance), instance.ledger(), name)


def _named(archive: Archive, ledger: Ledger, name: str) -> Standing:
    branch = name.split(".")[0]
    branches = [branch if archive.instance.has_branch(branch) else None, judged_branch(archive, ledger)]
    known = {
        entry.raised.id: entry  # as it stands by the last of them that has it
        for begin in branches
        if begin is not None
        for entry in standing_in(archive, ledger, descent(archive, begin))
    }
    of_step = [alarm_id for alarm_id in known if alarm_id.rpartition(".")[0] == name]  # as an act names what it follows
    if name not in known and len(of_step) != 1:
        listed = ", ".join(of_step or known) or "none"
        what = f"{name} raised several alarms; name one" if of_step else f"There is no alarm {name!r}. There are"
        raise BadInputError(f"{what}: {listed}. Of more than {MOST_KEPT} the oldest are one.")
    return known[name if name in known else of_step[0]]


def plan_close(instance: Instance, names: Sequence[str]) -> list[Standing]:
    """What would be closed. Raises: BadInputError for an alarm that is not there, or is closed already."""
    archive, ledger = Archive(instance), instance.ledger()
    chosen = [_named(archive, ledger, name) for name in dict.fromkeys(names)]
    for entry in chosen:
        if entry.closing is not None:
            raise BadInputError(_closed(entry.closing))
    return chosen


def _closed(closing: Closing) -> str:
    return (
        f"Alarm {closing.alarm} was closed by {closing.who} at {moment(closing.when_ms)} ({closing.why}). "
        "`millrace alarms list` shows which are open."
    )


def close(instance: Instance, names: Iterable[str], reason: str, cause: Cause = "operator", branch: str | None = None) -> None:
    """Say in the ledger that alarms no longer stand; None: on no branch. Raises: NotCountedError where another was faster."""
    signed: dict[str, Any] = {"who": user_name(), "why": reason, "when_ms": time.time_ns() // 1_000_000}
    closings = [Closing(**signed, alarm=name, cause=cause, branch=branch) for name in names]
    for closing in closings:
        append_decision(instance.ledger_stream(), closing)
    ledger = instance.ledger()
    for closing in closings:
        first = ledger.closing_of(closing.alarm, [] if branch is None else [branch])
        if closing not in ledger.counted and first is not None:
            raise NotCountedError("This was written and does not count. " + _closed(first))
