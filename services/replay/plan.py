"""What a replay will do, said before it does it: from which version, without what, over how much of the log, in how long.

A plan is stored under its sha256 and run by it. It holds as long as what it was made from does; new records do not count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from millrace.learners.errors import BadInputError, ConfigError, LearnerError, MillraceError
from millrace.services.decisions.exclusions import without_times
from millrace.services.decisions.versions import meant
from millrace.services.errors import OutdatedError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.pipeline.succession import live_branch
from millrace.services.replay.backfill import Backfill, backfill_of
from millrace.services.replay.operations import new_branch
from millrace.services.replay.read_before import Named, read_before, refuse_idle
from millrace.streams.branch.branch import Backends, changed, load_part, start
from millrace.streams.branch.forks import empty_fork, excluded, replay_fork
from millrace.streams.branch.host import use_threads
from millrace.streams.errors import DamageError, OffsetsGoneError
from millrace.streams.journal.entries import Fork, Mark, Step
from millrace.streams.journal.exclusions import Exclusion, OffsetRange, describe, left_out
from millrace.streams.journal.ledger import Ledger, Target
from millrace.streams.journal.ledger import describe_target as target_words
from millrace.streams.journal.store import FolderStore, read_checkpoint
from millrace.streams.source import Position, Source, Topic
from millrace.streams.worker.rejects import entries_of

READ_ROWS = 4096  # records a read
SAMPLE_ROWS = 2000  # learned, and thrown away, to measure the rate
SHORTEST = 6  # characters of a plan's hash that name it, at least
PLANS = "replay"  # the folder of plans


class ReplayPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be replayed, and what it was planned from."""

    branch: str  # to be made
    version: str | None  # None: it begins with nothing, at ``at``
    state_sha256: str | None
    exclude: list[Exclusion]
    serves: Target | None  # what the endpoint answered from
    topics: dict[str, Topic]
    config_sha256: str
    features_sha256: str
    kept: Position  # where reading begins, and the log has it
    backfill: Backfill | None = None  # rows of a file that are read before
    ends: str | None = None  # the branch that was live, and ends when this one takes over; None: no branch was


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a replay begins: at a version, or with nothing at some place of the log; and what it reads first."""

    version: str | None = None
    offsets: Position | None = None  # without a version; partitions that are not named begin with the first record there is
    since_ms: int | None = None  # the same by time: at the first record of each partition that is not older
    file: Path | None = None
    include: tuple[str, ...] = ()  # what the branch before leaves out, in words, and this one is to read


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to do, as the log stood when it was planned."""

    records: int
    bytes: int
    excluded: int
    backfill: int  # rows of a file, read before
    rows_per_s: float  # measured
    read_before: dict[str, int] = field(default_factory=dict)  # records to be left out that the version has read, by topic

    @property
    def seconds(self) -> float:
        """Of learning; proving it afterwards takes about as long again."""
        return (self.records + self.backfill) / self.rows_per_s if self.rows_per_s else 0.0


def plans(instance: Instance) -> FolderStore:
    """Where plans lie, by their sha256."""
    return FolderStore(instance.folder / "plans")


def load_plan(instance: Instance, name: str) -> tuple[str, ReplayPlan]:
    """A plan by its sha256, the beginning of it or the branch that it makes, and that sha256 in full.

    Raises: BadInputError where there is none or more than one; DamageError where it is not what was stored.
    """
    plan_names = sorted(path.name for path in (plans(instance).root / PLANS).glob("[0-9a-f]*"))
    matching = [plan_name for plan_name in plan_names if len(name) >= SHORTEST and plan_name.startswith(name)]
    made = instance.ledger().operations.get(name) if plan_names and not matching else None  # by the branch that it makes
    if made is not None:
        matching = [plan_name for plan_name in plan_names if plan_name == made.plan_sha256]
    if len(matching) != 1:
        listed = ", ".join(plan_name[:12] for plan_name in plan_names) or "none yet; make one with `millrace replay plan`"
        raise BadInputError(f"{name!r} names {len(matching)} plans; give at least {SHORTEST} characters of one of: {listed}.")
    try:
        return matching[0], msgspec.json.decode(plans(instance).get(PLANS, matching[0]), type=ReplayPlan)
    except msgspec.DecodeError as error:
        raise DamageError(f"Plan {matching[0][:12]} was written by another release ({error}). Make a new plan.") from error


def make_plan(instance: Instance, origin: Origin, exclude: Sequence[Exclusion]) -> tuple[str, ReplayPlan, Extent, list[str]]:
    """The plan, stored, with its sha256; how much there is to do; what of the configuration differs from what was.

    Raises: MillraceError where there is no such version; ConfigError where its state is no longer this pipeline's;
    OffsetsGoneError where the log no longer has what is to be read; BadInputError for offsets, exclusions or a file that
    cannot be.
    """
    instance.refuse_shards("A replay")
    use_threads(instance.loaded.pipeline.threads)
    archive, ledger = Archive(instance), instance.ledger()
    live, branch = live_branch(archive, ledger), new_branch(instance.branches(), ledger, "replay")
    mark = None if origin.version is None else _kept(archive, ledger, meant(archive, ledger, origin.version))
    exclude = [
        *(inherited := _inherited(archive, live, mark, origin)),
        *(exclusion for exclusion in exclude if exclusion not in inherited),
    ]
    if mark is None:
        fork, differs = _empty(instance, branch, origin, exclude), _changed_since(archive, live)
    else:
        backends = instance.backends(mark.branch)
        fork = as_of_parent(archive, replay_fork(instance.fold_spec, backends, branch, mark, exclude))
        differs = changed_state(archive, mark)
        _refuse_gone(archive, ledger, backends, fork, mark)
    source = _source(instance, fork)
    _refuse_absent(source, exclude)
    backfill = None if origin.file is None else backfill_of(instance, origin.file, fork.positions)
    plan = _planned(fork, _kept_positions(source, fork), ledger, backfill, live)
    own = [] if mark is None else _left_out(archive, mark.branch, mark)
    before = read_before(source, fork, [exclusion for exclusion in exclude if exclusion not in own])
    asked = Named([exclusion for exclusion in exclude if exclusion not in inherited])
    extent = replace(_extent(instance, source, fork, backfill, asked), read_before=before)
    refuse_idle(source, fork, asked)
    return plans(instance).put(PLANS, msgspec.json.encode(plan)), plan, extent, differs


def _refuse_absent(source: Source, exclude: Sequence[Exclusion]) -> None:
    """Raises: BadInputError for offsets of a partition that is not there, which would leave out nothing."""
    partitions = sorted(source.bounds())
    if absent := sorted({exclusion.tp for exclusion in exclude if isinstance(exclusion, OffsetRange)} - set(partitions)):
        raise BadInputError(f"The log has no {', '.join(absent)} to leave out. There are: {', '.join(partitions)}.")


def _inherited(archive: Archive, live: str | None, mark: Mark | None, origin: Origin) -> list[Exclusion]:
    """What the live branch and the version's own leave out lasts, unless it is said that it does not.

    Raises: BadInputError where it is said of something else.
    """
    left_out = [] if mark is None else _left_out(archive, mark.branch, mark)
    if live is not None and (mark is None or live != mark.branch):
        left_out += [exclusion for exclusion in _left_out(archive, live) if exclusion not in left_out]
    included = set(map(without_times, origin.include))
    if not_left_out := included - set(map(describe, left_out)):
        listed = "; ".join(describe(exclusion) for exclusion in left_out) or "nothing"
        raise BadInputError(f"{', '.join(sorted(not_left_out))} is not left out by branch {live}. It leaves out: {listed}.")
    return [exclusion for exclusion in left_out if describe(exclusion) not in included]


def _left_out(archive: Archive, branch: str, at: Mark | None = None) -> list[Exclusion]:
    """What a branch leaves out, as of a mark or now."""
    return excluded(archive.instance.store(), archive.so_far(branch), at)


def _empty(instance: Instance, branch: str, origin: Origin, exclude: Sequence[Exclusion]) -> Fork:
    """A fork that begins with nothing. Raises: BadInputError for a partition or an offset that is not there."""
    source = instance.source(instance.loaded.pipeline.topics)
    bounds = source.bounds()
    at = {tp: low for tp, (low, _) in bounds.items()} | (origin.offsets or {})
    if origin.since_ms is not None:
        at = {tp: first_since(source, tp, origin.since_ms) for tp in bounds}
    out_of_bounds = [
        f"{tp}={offset}" for tp, offset in at.items() if tp not in bounds or not bounds[tp][0] <= offset <= bounds[tp][1]
    ]
    if out_of_bounds:
        available = ", ".join(f"{tp} has {low} to {high - 1}" for tp, (low, high) in bounds.items())
        raise BadInputError(f"The log cannot be read from {', '.join(out_of_bounds)}: {available}.")
    return empty_fork(instance.fold_spec, source, branch, at, exclude)


def first_since(source: Source, tp: str, since_ms: int) -> int:
    """The offset of a partition's first record that is not older; its end where all are."""
    low, high = source.bounds()[tp]
    for begin in range(low, high, READ_ROWS):
        for event in source.read(tp, begin, min(begin + READ_ROWS, high)).events:
            if event.timestamp_ms >= since_ms:
                return event.offset
    return high


def _changed_since(archive: Archive, live: str | None) -> list[str]:
    """What of the configuration is another than that of the live branch: a branch that begins with nothing may differ."""
    fork = None if live is None else archive.so_far(live).fork
    if live is None or fork is None:
        return []
    store, fold_spec = archive.instance.store(), archive.instance.fold_spec
    pairs = ((fork.config_sha256, fold_spec.config), (fork.features_sha256, fold_spec.schema.declared))
    return [change for name, configured in pairs for change in changed(store, live, name, configured)]


def _planned(fork: Fork, kept_positions: Position, ledger: Ledger, backfill: Backfill | None, live: str | None) -> ReplayPlan:
    """The plan of a fork."""
    parent = fork.parent
    return ReplayPlan(
        branch=fork.branch,
        version=None if parent is None else f"{parent.branch}.{parent.seq}",
        state_sha256=None if parent is None else parent.state_sha256,
        exclude=fork.exclude,
        serves=ledger.serving.get(ENDPOINT),
        topics=fork.topics,
        config_sha256=fork.config_sha256,
        features_sha256=fork.features_sha256,
        kept=kept_positions,
        backfill=backfill,
        ends=live,
    )


def _kept_positions(source: Source, fork: Fork) -> Position:
    """Where reading begins: of each partition at the fork's offset, or at the first that the log still has after it."""
    bounds = source.bounds()
    return {tp: max(at, bounds[tp][0]) for tp, at in sorted(fork.positions.items())}


def _source(instance: Instance, fork: Fork) -> Source:
    """What a fork reads, the file that is read first aside."""
    return instance.source(list(fork.topics))


def fork_of(archive: Archive, ledger: Ledger, plan: ReplayPlan) -> Fork:
    """The first entry of the branch that a plan makes, without its back-fill.

    Raises: OutdatedError where the version has another state now, or is no longer kept.
    """
    instance = archive.instance
    if plan.version is None:
        source = instance.source(instance.loaded.pipeline.topics)
        return empty_fork(instance.fold_spec, source, plan.branch, plan.kept, plan.exclude)
    mark = _kept(archive, ledger, plan.version)
    if mark.state_sha256 != plan.state_sha256:
        raise OutdatedError(f"Version {plan.version} is not the one that was planned with. Restore the journal from a copy.")
    fork = replay_fork(instance.fold_spec, instance.backends(mark.branch), plan.branch, mark, plan.exclude)
    return as_of_parent(archive, fork)


def as_of_parent(archive: Archive, fork: Fork) -> Fork:
    """The fork, with the revisions that the state it begins with was learned under."""
    parent = None if fork.parent is None else archive.summary(fork.parent.branch).fork
    if parent is None:
        return fork
    return msgspec.structs.replace(fork, learner_revision=parent.learner_revision, fold_revision=parent.fold_revision)


def _kept(archive: Archive, ledger: Ledger, version: str) -> Mark:
    """The mark of a version whose parts are there, or a state between two. Raises: OutdatedError naming those that are."""
    mark = archive.state(version)
    if version in ledger.released:
        kept_versions = [kept_mark.version for kept_mark in _versions(archive, ledger, mark.branch)]
        raise OutdatedError(
            f"Version {version} has been let go; versions.keep says how many are kept, and what an alias names always is. "
            f"Plan from one that is there: {', '.join(map(str, kept_versions[-5:])) or 'none of this branch'}."
        )
    return mark


def _versions(archive: Archive, ledger: Ledger, branch: str) -> list[Mark]:
    """The marks of a branch's versions that are kept, oldest first."""
    return [mark for mark in archive.marks(branch) if mark.version is not None and mark.version not in ledger.released]


def check_plan(archive: Archive, ledger: Ledger, plan: ReplayPlan) -> Fork:
    """The fork to be made, once everything that the plan was made from is found to be so still.

    Raises: OutdatedError naming each thing that differs.
    """
    fork = fork_of(archive, ledger, plan)
    compared = {
        "what is served": (target_words(plan.serves), target_words(ledger.serving.get(ENDPOINT))),
        "the topics": (plan.topics, fork.topics),
        "the configuration": (plan.config_sha256[:12], fork.config_sha256[:12]),
        "the fields": (plan.features_sha256[:12], fork.features_sha256[:12]),
        "what the log still has": (plan.kept, _kept_positions(_source(archive.instance, fork), fork)),
    }
    differs = [f"{aspect} (planned: {before}; now: {after})" for aspect, (before, after) in compared.items() if before != after]
    if archive.instance.has_branch(plan.branch):
        differs.append(f"branch {plan.branch}, which is there already")
    if differs:
        raise OutdatedError(f"Since this replay was planned, other is {'; '.join(differs)}. Make a new plan.")
    return fork


def changed_state(archive: Archive, mark: Mark) -> list[str]:
    """What of the configuration differs from that of the version's branch, and does not matter to its state.

    Raises: ConfigError where it does.
    """
    fork, fold_spec, store = archive.summary(mark.branch).fork, archive.instance.fold_spec, archive.instance.store()
    if fork is None:
        raise MillraceError(f"Branch {mark.branch} has no first entry. Restore its journal from a copy.")
    differs = changed(store, mark.branch, fork.config_sha256, fold_spec.config)
    fields = changed(store, mark.branch, fork.features_sha256, fold_spec.schema.declared)
    manifest = read_checkpoint(store, mark.branch, str(mark.checkpoint))
    late = "join" in manifest.parts
    if late != (fold_spec.labels is not None):
        fields.append("the table [labels]")
    fields += [key for key in differs if key.startswith(("learner.", "seed"))]
    if "window" in manifest.parts:  # its rows are kept by this number
        fields += [key for key in differs if key.startswith("drift.relearn_rows")]
    try:
        fold_spec.fold(fork)
    except LearnerError as error:
        fields.append(str(error))
    if fields:
        name = mark.version or f"{mark.branch}.{mark.state_seq}"
        raise ConfigError(
            f"Version {name} was learned with another configuration, and its state cannot go on with this one: "
            f"{', '.join(fields[:5])}. Set it back, or learn anew with `millrace run --branch NEW`."
        )
    return differs


def _refuse_gone(archive: Archive, ledger: Ledger, backends: Backends, fork: Fork, begun_at: Mark) -> None:
    """Raises: OffsetsGoneError saying what retention has taken, and from which version a replay is possible."""
    bounds = backends.source.bounds()
    lost_records = {tp: bounds[tp][0] - at for tp, at in fork.positions.items() if bounds[tp][0] > at}
    if not lost_records:
        return
    possible = [
        str(mark.version)
        for mark in _versions(archive, ledger, begun_at.branch)
        if all(bounds[tp][0] <= at for tp, at in load_part(backends.store, mark, "counts")["position"].items())
    ]
    listed = ", ".join(f"{count} records of {tp}" for tp, count in lost_records.items())
    raise OffsetsGoneError(
        f"Retention has taken {listed} that follow {begun_at.branch}.{begun_at.state_seq}, so they cannot be read again. "
        f"A replay is possible from: {', '.join(possible[-5:]) or 'no version of this branch'}."
    )


def _extent(instance: Instance, source: Source, fork: Fork, backfill: Backfill | None, asked: Named) -> Extent:
    """Read all there is once, and learn a little of it; ``asked`` notes which of its exclusions name a record."""
    records = size = excluded = 0
    for tp, at in fork.positions.items():
        end = source.bounds()[tp][1]
        for begin in range(at, end, READ_ROWS):
            read = source.read(tp, begin, min(begin + READ_ROWS, end))
            records += len(read.events)
            size += sum(len(event.value or b"") + len(event.key or b"") + len(event.headers) for event in read.events)
            asked.look(read.events, tp)
            excluded += sum(left_out(fork.exclude, event, tp) for event in read.events) if fork.exclude else 0
    return Extent(records, size, excluded, 0 if backfill is None else backfill.rows, _rate(instance, source, fork))


def _rate(instance: Instance, source: Source, fork: Fork) -> float:
    """Records a second that this machine folds, from the state it will begin with; 0 where there is none to try it on."""
    fold_spec = instance.fold_spec
    fold, reader = start(fold_spec, instance.store(), fork), fold_spec.reader_of(fork)
    begin_s, tried = time.perf_counter(), 0
    for tp, at in fork.positions.items():
        end = min(source.bounds()[tp][1], at + SAMPLE_ROWS)
        if at < end:
            read = source.read(tp, at, end)
            rows, refused = reader.decode(read.events, tp)
            reads = [(tp, at, end, len(read.events), read.crc32c)]
            rejected = entries_of([(tp, refusal) for refusal in refused])
            clock_ms = max([fold.clock_ms, *rows.t.tolist()])
            fold.step(Step(branch="", seq=0, epoch=0, reads=reads, clock_ms=clock_ms, rejected=rejected), [rows])
            tried += len(read.events)
    return tried / (time.perf_counter() - begin_s) if tried else 0.0
