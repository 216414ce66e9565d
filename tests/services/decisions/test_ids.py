"""Every id that is printed, in every place that asks for one: taken where it means something, else told what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from alarmed import begin, instance, listed
from pipelines import facts, here, json_lines

from millrace.learners.errors import MillraceError
from millrace.services.decisions.in_force import means, refuse_other
from millrace.services.errors import NotCountedError
from millrace.services.pipeline.archive import Archive
from millrace.services.proof.certify import prove_version
from millrace.streams.journal.journal import summarise
from millrace.streams.journal.ledger import Target

REASON = ("--reason", "look")
# What takes a version; {} is the id. Nothing is changed: none has --yes.
VERSION = {
    "serve": ("serve", "digits.toml", "{}", *REASON),
    "rollback": ("rollback", "digits.toml", "{}", *REASON),
    "promote": ("promote", "digits.toml", "{}", *REASON),
    "rollback --learner": ("rollback", "digits.toml", "{}", "--learner", *REASON),
    "verify --version": ("verify", "digits.toml", "--version", "{}"),
    "export": ("export", "digits.toml", "{}", "exported"),
    "replay plan --from": ("replay", "plan", "digits.toml", "--from", "{}", *REASON),
}
ALARM = {
    "alarms show": ("alarms", "show", "digits.toml", "{}"),
    "alarms close": ("alarms", "close", "digits.toml", "{}", *REASON),
}
BRANCH = {
    "status --branch": ("status", "digits.toml", "--branch", "{}"),
    "log --branch": ("log", "digits.toml", "--branch", "{}"),
    "alarms list --branch": ("alarms", "list", "digits.toml", "--branch", "{}"),
    "verify --branch": ("verify", "digits.toml", "--branch", "{}"),
    "run --branch": ("run", "digits.toml", "--branch", "{}"),
    "serve --follow": ("serve", "digits.toml", "--follow", "{}", *REASON),
}
PLAN = {"replay run": ("replay", "run", "digits.toml", "{}")}
KINDS = ["branch", "version", "alias", "newest", "state", "alarm", "step", "place", "later", "nothing"]
TAKEN = (
    {(place, kind) for place in VERSION for kind in ("version", "alias", "newest")}
    | {("replay plan --from", kind) for kind in ("state", "step")}
    | {(place, kind) for place in ALARM for kind in ("alarm", "step")}
    | {(place, "branch") for place in BRANCH}
)
LONG = {("export", kind) for kind in ("version", "alias", "newest")}  # of test_export.py
LEARNS = {("run --branch", kind) for kind in ("branch", "alias", "newest", "nothing")}  # names that a new branch may have


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with versions, an alias, states between and an alarm that stands."""
    there = begin(tmp_path_factory.mktemp("ids"))
    newest = Archive(instance(there)).marks("main")[-1].version
    done = here("promote", "digits.toml", str(newest), "--reason", "best", "--yes", cwd=there)
    assert done.exit_code == 0, done.stderr
    return there


def ids(folder: Path) -> dict[str, str]:
    """One of each kind, as commands and answers print it; ``later``: of an entry that is not there yet."""
    summary = summarise(instance(folder).journal("main"), "main")
    versions = [mark.state_seq for mark in summary.marks if mark.version]
    between = next(seq for seq in range(versions[0] + 1, versions[-1]) if seq not in versions)
    alarm = str(listed(folder)[0]["alarm"])
    known = {"branch": "main", "version": f"main.{versions[0]}", "alias": "champion", "newest": "newest"}
    known |= {"state": f"main.{between}", "alarm": alarm, "step": alarm.rpartition(".")[0], "place": "digits.served-0-17"}
    return known | {"later": f"main.{summary.end.seq + 9}", "nothing": "nobody"}


def wanted(place: str, kind: str, known: dict[str, str]) -> str:
    """What is said where an id is not taken, as a pattern."""
    if place in ALARM:
        return rf"There is no alarm '{re.escape(known[kind])}'\. There are: {re.escape(known['alarm'])}"
    if place in BRANCH:
        a_state = kind in ("version", "state", "alarm", "step", "later")
        return "is a state of branch main" if a_state else "must be letters, digits|has no branch|has no entries"
    if place in PLAN:
        return "names 0 plans"
    between = r"it is a state between versions\. main\.\d+ is the version before, main\.\d+ the one after"
    return {
        "branch": r"it is a branch\. The newest of branch main: main\.",
        "state": between,
        "step": between,
        "alarm": r"the form of an alarm, which `millrace alarms show` takes\. main\.\d+ is the version before",
        "place": "the form of a place in the log",
        "later": r"the branch ends at main\.\d+\. main\.\d+ is the version before\.",
        "nothing": "There is no version or alias 'nobody'; `millrace versions` lists them",
    }[kind]


@pytest.mark.parametrize("place", [*VERSION, *ALARM, *BRANCH, *PLAN])
def test_each_id_in_each_place(folder: Path, place: str) -> None:
    """Exit 0 where it is taken; else 1 or 2 and one sentence that says what it is."""
    known = ids(folder)
    command = (VERSION | ALARM | BRANCH | PLAN)[place]
    for kind in KINDS:
        if (place, kind) in LONG | LEARNS:
            continue
        done = here(*[word.format(known[kind]) for word in command], cwd=folder)
        if (place, kind) in TAKEN:
            assert done.exit_code == 0, (place, kind, done.stderr)
        else:
            assert done.exit_code in (1, 2), (place, kind, done.stdout)
            assert re.search(wanted(place, kind, known), done.stderr.replace("\n", " ")), (place, kind, done.stderr)


def test_what_status_says_an_act_follows_is_an_id_that_alarms_show_takes(folder: Path) -> None:
    """The step of the alarm, as it stands in the line `act`."""
    after = re.search(r"after detector (\S+);", facts(folder)["act"])
    assert after is not None
    shown = here("alarms", "show", "digits.toml", after[1], "--output", "json", cwd=folder)
    assert shown.exit_code == 0, shown.stderr
    assert {line["what"]: line["value"] for line in json_lines(shown.stdout)}["alarm"] == listed(folder)[0]["alarm"]


def test_while_takes_the_one_name_of_what_is_in_force(folder: Path) -> None:
    """The branch that is followed; what only was served from it is refused with the name to write: it may have been decided."""
    known, ledger = ids(folder), instance(folder).ledger()
    refuse_other(ledger, "main")
    for seen in ("other", "other.3", known["alarm"], "champion", known["state"], known["version"]):
        with pytest.raises(NotCountedError, match=rf"--while {seen}: in force is the newest of main, .* now --while main\."):
            refuse_other(ledger, seen)
    version = ledger.aliases["champion"]
    assert means(version, Target(version=version)) and not means(version, Target(follow="main"))
    assert not means("champion", Target(version=version))  # the other operator may have moved the alias, too
    assert means(None, None) and not means("main", None)


def test_a_place_of_the_log_is_left_out_as_the_answer_to_a_label_has_it(folder: Path) -> None:
    """One record; and a topic that the pipeline does not read is named with those that it does."""
    plan = ("replay", "plan", "digits.toml", "--from-start", "--reason", "look", "--output", "json", "--exclude-offsets")
    done = here(*plan, "digits-0-17", cwd=folder)
    assert done.exit_code == 0, done.stderr
    told = {line["what"]: line["value"] for line in json_lines(done.stdout)}
    assert told["excluded"] == 1 and "digits:0" in told["excludes"] and "17" in told["excludes"]
    refused = here(*plan, "digits.served-0-17", cwd=folder)
    assert refused.exit_code == 2 and "The log has no digits.served:0 to leave out. There are: digits:0." in refused.stderr


def test_the_python_api_says_the_same_of_a_state_between_versions(folder: Path) -> None:
    """The proof of a version is asked for by its id."""
    with pytest.raises(MillraceError, match="it is a state between versions"):
        prove_version(instance(folder), ids(folder)["state"])
