"""A pipeline of several shards as one: learned shard by shard, merged, proved.

With one shard nothing here is used. Source: docs/design/journal.md, rule 15.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from millrace.learners.errors import BadInputError
from millrace.services.decisions.rollback import name_last_good
from millrace.services.decisions.sweep import sweep_ended
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.expiry import expire
from millrace.services.pipeline.instance import Instance
from millrace.services.proof.merges import is_merged, merge_learners
from millrace.services.training.run import Bounds, Done, run, serve_first
from millrace.streams.branch.host import use_threads
from millrace.streams.branch.merge import Merging
from millrace.streams.journal.entries import Mark


@contextmanager
def merging(instance: Instance, branch: str, take_over: bool) -> Iterator[Merging]:
    """The writer of a merging branch. Raises: BusyError where a live process has it; what ``Merging`` raises."""
    pipeline = instance.loaded.pipeline
    use_threads(pipeline.threads)
    with instance.hold(branch, take_over):
        serve_first(instance, branch)
        yield Merging(instance.fold_spec, instance.backends(branch), branch, merge_learners(instance), instance.host)


def run_shards(instance: Instance, branch: str, bounds: Bounds, take_over: bool) -> Done:
    """Learn every shard to the log's end, one after the other, then mark a version of their merge.

    Raises: BadInputError where one process would have to learn several shards at once; else as ``run``.
    """
    if bounds.follow or bounds.rows:
        raise BadInputError(
            "With several shards, --follow and --rows are for one of them: name it with --branch "
            f"{instance.shards(branch)[0]}; `millrace up` learns all of them at once."
        )
    shards = [run(instance, shard, bounds, take_over) for shard in instance.shards(branch)]
    read, learned, passed, rejected = (
        sum(counts) for counts in zip(*((done.read, done.learned, done.passed, done.rejected) for done in shards), strict=True)
    )
    with merging(instance, branch, take_over) as writer:
        version = writer.version_of(newest_versions(Archive(instance), instance.shards(branch)))
        if instance.fold_spec.drift is not None:
            name_last_good(instance, branch)
        return Done(branch, writer.epoch, writer.seq, read, learned, passed, rejected, version)


def learn(instance: Instance, branch: str, bounds: Bounds, take_over: bool) -> Done:
    """Learn a branch, whether it reads the log or merges shards, sweep what ended branches still hold, and let old records go.

    Raises: as ``run`` and ``run_shards``.
    """
    result = (run_shards if is_merged(instance, branch) else run)(instance, branch, bounds, take_over)
    sweep_ended(instance)
    expire(instance)
    return result


def newest_versions(archive: Archive, shards: Sequence[str]) -> list[Mark]:
    """The newest version of each shard; empty until every shard has one."""
    versions = [[mark for mark in archive.marks(shard) if mark.version is not None] for shard in shards]
    return [marks[-1] for marks in versions] if all(versions) else []
