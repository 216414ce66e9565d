"""What a merging branch holds, merged again from the versions of its shards.

Source: docs/design/journal.md, rule 15.
"""

from __future__ import annotations

from millrace.learners.table import algorithm_of
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import state_hash
from millrace.streams.branch.merge import MergeLearners, merge_of, merge_pieces, piece_of
from millrace.streams.journal.entries import Mark
from millrace.streams.sharding import WHOLE, shard_of


def is_merged(instance: Instance, branch: str) -> bool:
    """Whether a branch merges shards rather than reading the log."""
    return instance.loaded.pipeline.shards > 1 and shard_of(branch) == WHOLE


def merge_learners(instance: Instance) -> MergeLearners:
    """The exact merge of the pipeline's kind of learner."""
    merge = algorithm_of(instance.loaded.pipeline.kind).merge
    assert merge is not None  # the pipeline file was refused otherwise
    return merge


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
    return state_hash(merge_pieces(instance.fold_spec, merge_learners(instance), entry, pieces).parts())
