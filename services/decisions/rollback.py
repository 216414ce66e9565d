"""Where `millrace rollback` goes, why there, and what else there is.

After an alarm to the newest verified version that has learned no row since the onset of any open one; without an open alarm to
the newest version before what is served. What it chooses by is shown: open alarms, and candidates.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from typing import Any

from millrace.learners.errors import MillraceError
from millrace.services.decisions.alarms import live
from millrace.services.decisions.decide import Change, Naming, decide, refuse_released, servable
from millrace.services.decisions.last_good import LAST_GOOD, Candidate, Prospect, last_good_of, prospect
from millrace.services.decisions.versions import meant
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.streams.journal.ledger import Ledger, Target, describe_target

log = logging.getLogger("millrace")

SHOWN = 6  # candidates, and as many alarms


@dataclass(frozen=True, slots=True)
class Rollback:
    """What the endpoint is to go from and to, and by what that was chosen."""

    change: Change
    why: str
    alarms: list[dict[str, Any]]  # that are open, to show
    candidates: list[dict[str, Any]]  # newest first, to show


def choose_rollback(instance: Instance, version: str | None) -> Rollback:
    """To ``version``, else to the last good one where an alarm is open, else to the one before what is served or followed.

    Versions that are not what their log says are passed by.
    Raises: as ``plan``; MillraceError where there is none, with the candidates; NotReadyError where an alarm is being written
    down just now.
    """
    archive, ledger = Archive(instance), instance.ledger()
    if version is not None:
        change = Change(ledger.serving.get(ENDPOINT), Target(version=servable(archive, ledger, version)))
        return Rollback(change, "it was named", [], [])
    known, before = _prospect(archive, ledger)
    chosen, why = _chosen(known, before)
    change = Change(ledger.serving.get(ENDPOINT), Target(version=servable(archive, ledger, chosen.version)))
    shown = list(islice(known.candidates(before), SHOWN))
    shown += [] if any(candidate.version == chosen.version for candidate in shown) else [chosen]
    rows = [known.row(candidate, chosen.version) for candidate in shown]
    return Rollback(change, why, [entry.row for entry in known.alarms[-SHOWN:]], rows)


def plan_rollback(instance: Instance, version: str | None) -> Change:
    """The change alone. Raises: as ``choose_rollback``."""
    return choose_rollback(instance, version).change


def learner_version(archive: Archive, ledger: Ledger, version: str | None) -> str:
    """Whose learner is to go on: ``version``, else the one that is served, else as ``choose_rollback``.

    Raises: MillraceError where there is none, or it is no longer kept.
    """
    serving = ledger.serving.get(ENDPOINT)
    chosen = meant(archive, ledger, version) if version else serving and serving.version
    if not chosen:
        chosen = _chosen(*_prospect(archive, ledger))[0].version
    refuse_released(ledger, chosen)
    return chosen


def _prospect(archive: Archive, ledger: Ledger) -> tuple[Prospect, str | None]:
    """Of what is live, and the version that is served. Raises: MillraceError where nothing ever was."""
    branch, serving = live(ledger), ledger.serving.get(ENDPOINT)
    if branch is None or serving is None:
        raise MillraceError(f"Endpoint {ENDPOINT} has never served anything, so there is nothing to go back from.")
    return prospect(archive, ledger, branch), serving.version


def _chosen(known: Prospect, before: str | None) -> tuple[Candidate, str]:
    """The newest version that may be taken, and why that one."""
    serving = known.ledger.serving.get(ENDPOINT)
    branch = live(known.ledger)
    candidates = known.candidates(before)
    if not known.alarms:
        for candidate in candidates:
            if candidate.against in ("", "not verified"):
                return candidate, f"no alarm is open, and it is the newest version before {describe_target(serving)}"
        raise MillraceError(
            f"Branch {branch} has no version before {describe_target(serving)}. Name one with `millrace rollback ... VERSION`."
        )
    onset = min(known.alarms, key=lambda entry: entry.raised.alarm.onset_rows).raised
    found = next((candidate for candidate in candidates if not candidate.against), None)
    if found is None:
        listed = "; ".join(f"{candidate.version} {candidate.against}" for candidate in islice(known.candidates(before), SHOWN))
        raise MillraceError(
            f"No verified version before {describe_target(serving)} is older than every open alarm: {onset.id} has its onset "
            f"at row {onset.alarm.onset_rows:,}. Candidates: {listed or 'none'}. Verify one (`millrace verify --version`), "
            "close an alarm that is no fault (`millrace alarms close`), or name a VERSION."
        )
    count = f"{len(known.alarms)} open alarms" if len(known.alarms) > 1 else "the open alarm"
    why = f"it is the newest verified version before the onset of {count}: {onset.id}, at row {onset.alarm.onset_rows:,}"
    return found, why


def name_last_good(instance: Instance, branch: str | None = None) -> None:
    """Let the alias last-good name it, as open alarms say; another hand that was faster is left alone.

    Of ``branch``, else of the live one. Where no alarm is open, or no version is good, the alias names nothing.
    """
    if instance.loaded.pipeline.drift is None:
        return
    try:
        ledger = instance.ledger()
        branch, current = branch or live(ledger), ledger.aliases.get(LAST_GOOD)
        if branch is None:
            return
        version = last_good_of(Archive(instance), branch, ledger)
        if version != current:
            decide(
                instance, Naming(LAST_GOOD, current, version), "drift alarm" if version else "no alarm is open, or none older"
            )
    except MillraceError as error:
        log.warning("The alias %s was not set: %s", LAST_GOOD, error)
