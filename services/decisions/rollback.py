"""Where `millrace rollback` goes, why there, and what else there is.

After an alarm to the newest verified version that has learned no row since the onset of any open one; without an open alarm to
the newest version before what is served. What it chooses by is shown: open alarms, and candidates.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from millrace.learners.errors import MillraceError
from millrace.services.decisions.decide import Change, Naming, decide, refuse_released, servable
from millrace.services.decisions.descent import judged_branch
from millrace.services.decisions.last_good import LAST_GOOD, NOT_VERIFIED, Candidate, Prospect, last_good_of, prospect
from millrace.services.decisions.versions import meant
from millrace.services.errors import NotCountedError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.streams.journal.ledger import Ledger, Target, describe_target

log = logging.getLogger("millrace")

SHOWN = 6  # candidates, and as many alarms
TRIES = 2  # where another hand sets last-good meanwhile, it is looked at once more: that one may have gone by older alarms


@dataclass(frozen=True, slots=True)
class Rollback:
    """What the endpoint is to go from and to, and by what that was chosen."""

    ledger: Ledger  # by which it was chosen
    change: Change
    why: str
    alarms: list[dict[str, Any]]  # that are open, to show
    candidates: list[dict[str, Any]]  # newest first, to show; where there is none to go to, those that are not verified first
    refused: str = ""  # why there is none to go to
    unverified: str | None = None  # the newest that could be gone to, were it verified; where there is none that is


def choose_rollback(instance: Instance, version: str | None, ledger: Ledger | None = None) -> Rollback:
    """To ``version``, else to the last good one where an alarm is open, else to the one before what is served or followed.

    Versions that are not what their log says are passed by. Where what is served is older than every open alarm already, it
    stays. ``ledger``: by which it is chosen, where that was read before.
    Raises: as ``plan``; MillraceError where nothing was ever served; NotReadyError where an alarm is being written down just
    now.
    """
    archive, ledger = Archive(instance), ledger or instance.ledger()
    if version is not None:
        change = Change(ledger.serving.get(ENDPOINT), Target(version=servable(archive, ledger, version)))
        return Rollback(ledger, change, "it was named", [], [])
    known, before = _prospect(archive, ledger)
    found, why = _chosen(known, before)
    if found is None:
        return _refusal(known, before, why)
    change = Change(ledger.serving.get(ENDPOINT), Target(version=servable(archive, ledger, found.version)))
    shown = list(islice(known.candidates(before), SHOWN))
    if all(candidate.version != found.version for candidate in shown):
        shown.append(found)
    rows = [known.row(candidate, found.version) for candidate in shown]
    return Rollback(ledger, change, why, [entry.row for entry in known.alarms[-SHOWN:]], rows)


def plan_rollback(instance: Instance, version: str | None) -> Change:
    """The change alone. Raises: as ``choose_rollback``; MillraceError where there is no version to go to."""
    chosen = choose_rollback(instance, version)
    if chosen.refused:
        raise MillraceError(chosen.refused)
    return chosen.change


def learner_version(archive: Archive, ledger: Ledger, version: str | None) -> str:
    """Whose learner is to go on: ``version``, else the one that is served, else as ``choose_rollback``.

    Raises: MillraceError where there is none, or it is no longer kept.
    """
    serving = ledger.serving.get(ENDPOINT)
    chosen = meant(archive, ledger, version) if version else serving and serving.version
    if not chosen:
        found, why = _chosen(*_prospect(archive, ledger))
        if found is None:
            raise MillraceError(why)
        chosen = found.version
    refuse_released(ledger, chosen)
    return chosen


def _prospect(archive: Archive, ledger: Ledger) -> tuple[Prospect, str | None]:
    """Of what the endpoint is judged by, and the version that is served. Raises: MillraceError where nothing ever was."""
    branch, serving = judged_branch(archive, ledger), ledger.serving.get(ENDPOINT)
    if branch is None or serving is None:
        raise MillraceError(f"Endpoint {ENDPOINT} has never served anything, so there is nothing to go back from.")
    return prospect(archive, ledger, branch), serving.version


def _chosen(known: Prospect, before: str | None) -> tuple[Candidate | None, str]:
    """The newest version that may be taken, and why that one; None: why there is none."""
    served = describe_target(known.ledger.serving.get(ENDPOINT))
    candidates = known.candidates(before)
    if not known.alarms:
        for candidate in candidates:
            if candidate.against in ("", NOT_VERIFIED):
                return candidate, f"no alarm is open, and it is the newest version before {served}"
        return None, f"Branch {known.branch} has no version before {served}. Name one with `millrace rollback ... VERSION`."
    onset = min(known.alarms, key=lambda entry: entry.raised.alarm.onset_rows).raised
    count = f"{len(known.alarms)} open alarms" if len(known.alarms) > 1 else "the open alarm"
    since = f"{onset.id}, at row {onset.alarm.onset_rows:,}"
    current = known.candidate(before)
    if current is not None and current.against in ("", NOT_VERIFIED):
        stays = "It stays; to go further back, name a VERSION"
        return current, f"it is served, and has learned no row since the onset of {count}: {since}. {stays}"
    found = next((candidate for candidate in candidates if not candidate.against), None)
    if found is not None:
        return found, f"it is the newest verified version before the onset of {count}: {since}"
    return None, (
        f"No verified version before {served} is older than every open alarm: {onset.id} has its onset at row "
        f"{onset.alarm.onset_rows:,}. Verify a candidate, close an alarm that is no fault (`millrace alarms close`), or name a "
        "VERSION."
    )


def _refusal(known: Prospect, before: str | None, why: str) -> Rollback:
    """With the candidates, first those that a proof alone is missing for."""
    unverified = (candidate for candidate in known.candidates(before) if candidate.against == NOT_VERIFIED)
    shown = list(islice(unverified, SHOWN))
    newest = shown[0].version if shown else None
    others = (candidate for candidate in known.candidates(before) if candidate.against != NOT_VERIFIED)
    shown += islice(others, SHOWN - len(shown))
    stays = known.ledger.serving.get(ENDPOINT)
    assert stays is not None  # else there were nothing to go back from
    rows = [known.row(candidate, None) for candidate in shown]
    alarms = [entry.row for entry in known.alarms[-SHOWN:]]
    return Rollback(known.ledger, Change(stays, stays), "", alarms, rows, why, newest)


def name_last_good(instance: Instance, branch: str | None = None) -> None:
    """Let the alias last-good name where `rollback` goes, as open alarms say; another hand that was faster is left alone.

    ``branch``: what has changed; where the endpoint is judged by another one, the alias stays. Where no alarm is open, or no
    version is good, it names nothing.
    """
    if instance.loaded.pipeline.drift is None:
        return
    try:
        for _ in range(TRIES):
            with suppress(NotCountedError):
                _name_last_good(instance, branch)
                return
    except MillraceError as error:
        log.warning("The alias %s was not set: %s", LAST_GOOD, error)


def _name_last_good(instance: Instance, branch: str | None) -> None:
    """Raises: NotCountedError where another hand was faster."""
    archive, ledger = Archive(instance), instance.ledger()
    judged, current = judged_branch(archive, ledger), ledger.aliases.get(LAST_GOOD)
    if judged is None or branch not in (None, judged):
        return
    version = last_good_of(archive, judged, ledger)
    if version != current:
        decide(instance, Naming(LAST_GOOD, current, version), "drift alarm" if version else "no alarm is open, or none older")
