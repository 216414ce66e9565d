"""What a replay will do, said before it does it: from which version, without what, over how much of the log, in how long.

A plan is stored under its sha256 and run by it. It holds as long as what it was made from does; new records do not count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from millrace.learners.errors import BadInputError, ConfigError, MillraceError, OffsetsGoneError, OutdatedError
from millrace.services.follower import Archive
from millrace.services.instance import ENDPOINT, Instance
from millrace.streams.branch import Doors, changed, start
from millrace.streams.entries import Fork, Mark, Rejected, Step
from millrace.streams.exclusions import Exclusion, left_out, words
from millrace.streams.forks import replay_fork
from millrace.streams.host import use_threads
from millrace.streams.journal import summarise
from millrace.streams.ledger import Ledger, Target
from millrace.streams.ledger import words as target_words
from millrace.streams.source import Position, Topic
from millrace.streams.store import FolderStore, read_manifest

CHUNK = 4096  # records a read
SAMPLE_ROWS = 2000  # learned, and thrown away, to measure the rate
SHORTEST = 6  # characters of a plan's hash that name it, at least
PLANS = "replay"  # the folder of plans


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be replayed, and what it was planned from."""

    branch: str  # to be made
    version: str
    state_sha256: str
    exclude: list[Exclusion]
    serves: Target | None  # what the endpoint answered from
    topics: dict[str, Topic]
    config_sha256: str
    features_sha256: str
    kept: Position  # where reading begins, and the log has it


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to do, as the log stood when it was planned."""

    records: int
    bytes: int
    excluded: int
    rows_per_s: float  # measured

    @property
    def seconds(self) -> float:
        """Of learning; proving it afterwards takes about as long again."""
        return self.records / self.rows_per_s if self.rows_per_s else 0.0


def plans(instance: Instance) -> FolderStore:
    """Where plans lie, by their sha256."""
    return FolderStore(instance.folder / "plans")


def load_plan(instance: Instance, name: str) -> tuple[str, Plan]:
    """A plan by its sha256 or the beginning of it, and that sha256 in full.

    Raises: BadInputError where there is none or more than one; DamageError where it is not what was stored.
    """
    there = sorted(path.name for path in (plans(instance).root / PLANS).glob("[0-9a-f]*"))
    found = [one for one in there if len(name) >= SHORTEST and one.startswith(name)]
    if len(found) != 1:
        listed = ", ".join(one[:12] for one in there) or "none yet; make one with `millrace replay plan`"
        raise BadInputError(f"{name!r} names {len(found)} plans; give at least {SHORTEST} characters of one of: {listed}.")
    return found[0], msgspec.json.decode(plans(instance).get(PLANS, found[0]), type=Plan)


def make_plan(instance: Instance, version: str, exclude: Sequence[Exclusion]) -> tuple[str, Plan, Extent, list[str]]:
    """The plan, stored, with its sha256; how much there is to do; what of the configuration differs from the version's.

    Raises: MillraceError where there is no such version; ConfigError where its state is no longer this pipeline's;
    OffsetsGoneError where the log no longer has what follows it.
    """
    use_threads(instance.loaded.pipeline.threads)
    mark = Archive(instance).mark(version)
    doors = instance.doors(mark.branch)
    branch = _next_branch(instance, instance.ledger())
    fork = replay_fork(instance.recipe, doors, branch, mark, exclude)
    differs = _differences(instance, doors, mark)
    _refuse_gone(instance, doors, fork, version)
    plan = planned(instance, fork)
    extent = _extent(instance, doors, fork)
    return plans(instance).put(PLANS, msgspec.json.encode(plan)), plan, extent, differs


def planned(instance: Instance, fork: Fork) -> Plan:
    """The plan of a fork, from what is so now."""
    assert fork.parent is not None
    bounds = instance.doors(fork.parent.branch).source.bounds()
    return Plan(
        branch=fork.branch,
        version=f"{fork.parent.branch}.{fork.parent.seq}",
        state_sha256=fork.parent.state_sha256,
        exclude=fork.exclude,
        serves=instance.ledger().serving.get(ENDPOINT),
        topics=fork.topics,
        config_sha256=fork.config_sha256,
        features_sha256=fork.features_sha256,
        kept={tp: max(at, bounds[tp][0]) for tp, at in sorted(fork.positions.items())},
    )


def fork_of(instance: Instance, plan: Plan) -> Fork:
    """The first entry of the branch that a plan makes. Raises: OutdatedError where the version has another state now."""
    mark = Archive(instance).mark(plan.version)
    if mark.state_sha256 != plan.state_sha256:
        raise OutdatedError(f"Version {plan.version} is not the one that was planned with. Restore the journal from a copy.")
    return replay_fork(instance.recipe, instance.doors(mark.branch), plan.branch, mark, plan.exclude)


def check_plan(instance: Instance, plan: Plan) -> Fork:
    """The fork to be made, once everything that the plan was made from is found to be so still.

    Raises: OutdatedError naming each thing that differs.
    """
    fork = fork_of(instance, plan)
    now = planned(instance, fork)
    said = {
        "what is served": (target_words(plan.serves), target_words(now.serves)),
        "the topics": (plan.topics, now.topics),
        "the configuration": (plan.config_sha256[:12], now.config_sha256[:12]),
        "the fields": (plan.features_sha256[:12], now.features_sha256[:12]),
        "what the log still has": (plan.kept, now.kept),
    }
    differs = [f"{what} (planned: {before}; now: {after})" for what, (before, after) in said.items() if before != after]
    if instance.has_branch(plan.branch):
        differs.append(f"branch {plan.branch}, which is there already")
    if differs:
        raise OutdatedError(f"Since this replay was planned, other is {'; '.join(differs)}. Make a new plan.")
    return fork


def _next_branch(instance: Instance, ledger: Ledger) -> str:
    """A name that no branch and no operation has."""
    taken = {*instance.branches(), *(one.branch for one in ledger.operations.values())}
    return next(name for number in range(1, len(taken) + 2) if (name := f"replay-{number}") not in taken)


def _differences(instance: Instance, doors: Doors, mark: Mark) -> list[str]:
    """What of the configuration differs from that of the version's branch, and does not matter to its state.

    Raises: ConfigError where it does.
    """
    fork, recipe = summarise(doors.journal, mark.branch).fork, instance.recipe
    if fork is None:
        raise MillraceError(f"Branch {mark.branch} has no first entry. Restore its journal from a copy.")
    differs = changed(doors.store, mark.branch, fork.config_sha256, recipe.config)
    fields = changed(doors.store, mark.branch, fork.features_sha256, recipe.schema.declared)
    manifest = read_manifest(doors.store, mark.branch, str(mark.checkpoint))
    late = "join" in manifest.parts
    if late != (recipe.labels is not None):
        fields.append("the table [labels]")
    fields += [one for one in differs if one.startswith(("learner.", "seed"))]
    if "window" in manifest.parts:  # its rows are kept by this number
        fields += [one for one in differs if one.startswith("drift.relearn_rows")]
    if fork.learner_revision != recipe.make_learner().revision:
        fields.append(f"the learner's revision {fork.learner_revision}")
    if fields:
        raise ConfigError(
            f"Version {mark.version} was learned with another configuration, and its state cannot go on with this one: "
            f"{', '.join(fields[:5])}. Set it back, or learn anew with `millrace run --branch NEW`."
        )
    return differs


def _refuse_gone(instance: Instance, doors: Doors, fork: Fork, version: str) -> None:
    """Raises: OffsetsGoneError saying what retention has taken, and from which version a replay is possible."""
    bounds = doors.source.bounds()
    gone = {tp: bounds[tp][0] - at for tp, at in fork.positions.items() if bounds[tp][0] > at}
    if not gone:
        return
    archive = Archive(instance)
    marks = [mark for mark in archive.marks(version.rpartition(".")[0]) if mark.version is not None]
    possible = [
        str(mark.version)
        for mark in marks
        if all(bounds[tp][0] <= at for tp, at in replay_fork(instance.recipe, doors, "x", mark, []).positions.items())
    ]
    taken = ", ".join(f"{count} records of {tp}" for tp, count in gone.items())
    raise OffsetsGoneError(
        f"Retention has taken {taken} that follow version {version}, so they cannot be read again. "
        f"A replay is possible from: {', '.join(possible[-5:]) or 'no version of this branch'}."
    )


def _extent(instance: Instance, doors: Doors, fork: Fork) -> Extent:
    """Read all there is once, and learn a little of it."""
    records = size = excluded = 0
    for tp, at in fork.positions.items():
        end = doors.source.bounds()[tp][1]
        for begin in range(at, end, CHUNK):
            read = doors.source.read(tp, begin, min(begin + CHUNK, end))
            records += len(read.events)
            size += sum(len(event.value or b"") + len(event.key or b"") + len(event.headers) for event in read.events)
            excluded += sum(left_out(fork.exclude, event, tp) for event in read.events) if fork.exclude else 0
    return Extent(records, size, excluded, _rate(instance, doors, fork))


def _rate(instance: Instance, doors: Doors, fork: Fork) -> float:
    """Records a second that this machine folds, from the state it will begin with; 0 where there is none to try it on."""
    fold, reader = start(instance.recipe, doors.store, fork), instance.recipe.reader_of(fork)
    begin_s, tried = time.perf_counter(), 0
    for tp, at in fork.positions.items():
        end = min(doors.source.bounds()[tp][1], at + SAMPLE_ROWS)
        if at < end:
            read = doors.source.read(tp, at, end)
            rows, refused = reader.decode(read.events, tp)
            reads = [(tp, at, end, len(read.events), read.crc32c)]
            rejected: list[Rejected] = [(tp, one.event.offset, one.row, one.reason) for one in refused]
            clock_ms = max([fold.clock_ms, *rows.t.tolist()])
            fold.step(Step(branch="", seq=0, epoch=0, reads=reads, clock_ms=clock_ms, rejected=rejected), [rows])
            tried += len(read.events)
    return tried / (time.perf_counter() - begin_s) if tried else 0.0


def plan_rows(name: str, plan: Plan, extent: Extent, differs: Sequence[str]) -> list[dict[str, Any]]:
    """A plan as lines to show."""
    facts = {
        "plan": name,
        "branch": plan.branch,
        "from": plan.version,
        "excludes": "; ".join(words(one) for one in plan.exclude) or "nothing",
        "records": extent.records,
        "bytes": extent.bytes,
        "excluded": extent.excluded,
        "rows_per_s": round(extent.rows_per_s),
        "seconds": round(extent.seconds, 3),
        "taken_by_retention": 0,
        "configuration": "; ".join(differs) or "as the version's",
        "endpoint": target_words(plan.serves),
    }
    return [{"what": name, "value": value} for name, value in facts.items()]
