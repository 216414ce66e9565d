"""The ids that are printed, and what is said where one of them stands in the place of another. Pure.

main          a branch
main.64       a state of it, after its 64th entry; a version where a mark with parts has that name
main.64.1     an alarm: the first of those that the step main.64 raised
NAME.served-0-17    a place in the log: topic, partition, offset
b1946ac92492  the beginning of a plan's sha256
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from millrace.streams.journal.journal import Summary

_STATE = re.compile(r"(?P<branch>[^.]+)\.(?P<seq>[0-9]{1,18})", re.ASCII)
_ALARM = re.compile(r"(?P<branch>[^.]+)\.(?P<seq>[0-9]{1,18})\.[0-9]{1,18}", re.ASCII)
_PLACE = re.compile(r"(?P<topic>.+)-(?P<partition>[0-9]{1,9})-(?P<offset>[0-9]{1,18})", re.ASCII)
SHOWN = 8  # versions of a branch


def state_of(name: str) -> tuple[str, int]:
    """Branch and seq of a state's id; no branch where it is none.

    >>> state_of("main.64"), state_of("main.64.1"), state_of("newest")
    (('main', 64), ('', 0), ('', 0))
    """
    found = _STATE.fullmatch(name)
    return (found["branch"], int(found["seq"])) if found else ("", 0)


def branch_in(name: str) -> str:
    """The branch that the id of a state or of an alarm begins with; empty where it is neither.

    >>> branch_in("main.64"), branch_in("main.64.1"), branch_in("main"), branch_in("mail.served-0-17")
    ('main', 'main', '', '')
    """
    found = _STATE.fullmatch(name) or _ALARM.fullmatch(name)
    return found["branch"] if found else ""


def place_of(text: str) -> tuple[str, int] | None:
    """``TOPIC:PARTITION`` and offset of a place in the log, as the answer to a label has it, or None.

    >>> place_of("mail.served-0-17"), place_of("mail")
    (('mail.served:0', 17), None)
    """
    found = _PLACE.fullmatch(text)
    return (f"{found['topic']}:{found['partition']}", int(found["offset"])) if found else None


def no_version(name: str, branches: Sequence[str], summary: Summary | None) -> str:
    """Why there is no version of that name, what it is instead, and which versions are the nearest.

    ``branches``: that there are; ``summary``: of the one that the name begins with, where it does with one of them.
    """
    branch = name.split(".")[0]
    if summary is None:
        if place_of(name) is not None:
            return f"There is no version {name}: it has the form of a place in the log. `millrace versions` lists versions."
        if branch == name:
            near = get_close_matches(name, branches, n=1)
            hint = f" {near[0]} is a branch." if near else ""
            return f"There is no version or alias {name!r}; `millrace versions` lists them.{hint}"
        return (
            f"There is no version {name}, for there is no branch {branch}. There are branches: {', '.join(branches) or 'none'}."
        )
    newest = f"The newest of branch {branch}: {_listed(summary)}."
    if branch == name:
        return f"There is no version {name}: it is a branch. {newest}"
    found = _STATE.fullmatch(name) or _ALARM.fullmatch(name)
    if found is None:
        return f"There is no version {name}. {newest}"
    around = f"{_around(summary, int(found['seq']))}{newest}"
    if _STATE.fullmatch(name) is None:
        return f"There is no version {name}: it has the form of an alarm, which `millrace alarms show` takes. {around}"
    if int(found["seq"]) > summary.end.seq:
        return f"There is no version {name}: the branch ends at {branch}.{summary.end.seq}. {around}"
    return (
        f"There is no version {name}: it is a state between versions. {around} `millrace replay plan --from {name}` goes on "
        "from the state itself."
    )


def no_branch(name: str, branches: Sequence[str]) -> str:
    """What a name is that stands in place of a branch's, with a space before it; nothing where that cannot be said.

    >>> no_branch("main.64", ["main"]), no_branch("mian", ["main"])
    (' main.64 is a state of branch main.', '')
    """
    branch = branch_in(name)
    return f" {name} is a state of branch {branch}." if branch in branches else ""


def _listed(summary: Summary) -> str:
    return ", ".join(str(mark.version) for mark in summary.marks[-SHOWN:] if mark.version) or "none"


def _around(summary: Summary, seq: int) -> str:
    """The versions next to a place of a branch, in words."""
    marks = [mark for mark in summary.marks if mark.version]
    before = next((f"{mark.version} is the version before" for mark in reversed(marks) if mark.state_seq <= seq), None)
    after = next((f"{mark.version} the one after" for mark in marks if mark.state_seq > seq), None)
    words = ", ".join(words for words in (before, after) if words)
    return f"{words}. " if words else ""
