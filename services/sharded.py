"""A pipeline of several shards as one: learned shard by shard, merged, proved.

With one shard nothing here is used. Source: docs/design/journal.md, rule 15.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from millrace.learners.errors import BadInputError
from millrace.learners.table import LEARNERS
from millrace.services.deciding import name_last_good
from millrace.services.follower import Archive
from millrace.services.instance import Instance
from millrace.services.running import Bounds, Done, run, serve_first
from millrace.streams.branch import state_hash
from millrace.streams.entries import Mark
from millrace.streams.host import this_host, use_threads
from millrace.streams.merging import MergeLearners, Merging, merge_of, merge_pieces, piece_of
from millrace.streams.sharding import WHOLE, shard_of


def is_merged(instance: Instance, branch: str) -> bool:
    """Whether a branch merges shards rather than reading the log."""
    return instance.loaded.pipeline.shards > 1 and shard_of(branch) == WHOLE


def merge_learners(instance: Instance) -> MergeLearners:
    """The exact merge of the pipeline's kind of learner."""
    merge = LEARNERS[instance.loaded.pipeline.learner["kind"]].merge
    assert merge is not None  # the pipeline file was refused otherwise
    return merge


@contextmanager
def merging(instance: Instance, branch: str, take_over: bool) -> Iterator[Merging]:
    """The writer of a merging branch. Raises: BusyError where a live process has it; what ``Merging`` raises."""
    pipeline = instance.loaded.pipeline
    use_threads(pipeline.threads)
    with instance.hold(branch, take_over):
        serve_first(instance, branch)
        host = this_host(pipeline.threads)
        yield Merging(instance.recipe, instance.doors(branch), branch, merge_learners(instance), host)


def run_shards(instance: Instance, branch: str, bounds: Bounds, take_over: bool) -> Done:
    """Learn every shard to the log's end, one after the other, then mark a version of their merge.

    Raises: BadInputError where one process would have to learn several shards at once; else as ``run``.
    """
    if bounds.follow or bounds.rows:
        raise BadInputError(
            "With several shards, --follow and --rows are for one of them: name it with --branch "
            f"{instance.shards(branch)[0]}; `millrace up` learns all of them at once."
        )
    read = sum(run(instance, shard, bounds, take_over).read for shard in instance.shards(branch))
    with merging(instance, branch, take_over) as writer:
        version = writer.version_of(newest_versions(Archive(instance), instance.shards(branch)))
        if instance.recipe.drift is not None:
            name_last_good(instance, branch)
        return Done(branch, writer.epoch, writer.seq, read, version)


def newest_versions(archive: Archive, shards: Sequence[str]) -> list[Mark]:
    """The newest version of each shard; none at all where one of them has none yet."""
    versions = [[mark for mark in archive.marks(shard) if mark.version is not None] for shard in shards]
    return [marks[-1] for marks in versions] if all(versions) else []


def merged_from(instance: Instance, version: str) -> list[str]:
    """The versions of the shards that a version merges. Raises: DamageError where the journal has no such merge."""
    branch = version.rpartition(".")[0]
    return [f"{name}.{seq}" for name, seq, _ in merge_of(instance.journal(branch), branch, version).of]


def merge_again(instance: Instance, mark: Mark) -> str:
    """The hash of the state that a version should have, from the versions of the shards as they are stored.

    Raises: MillraceError where one of them is missing, DamageError where one is not what was merged.
    """
    entry = merge_of(instance.journal(mark.branch), mark.branch, str(mark.version))
    archive, store = Archive(instance), instance.store()
    pieces = [piece_of(store, archive.mark(f"{name}.{seq}")) for name, seq, _ in entry.of]
    return state_hash(merge_pieces(instance.recipe, merge_learners(instance), entry, pieces).parts())
