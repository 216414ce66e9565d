"""A branch that a newer release began is refused before anything is served: nobody would learn it while it answered."""

from __future__ import annotations

from contextlib import suppress

from millrace.services.pipeline.instance import Instance
from millrace.streams.errors import DamageError, StorageError
from millrace.streams.journal.entries import Fork
from millrace.streams.journal.journal import Cursor, counted


def refuse_begun_later(instance: Instance, branch: str) -> None:
    """Nothing where the branch has not begun, or where this release can fold it.

    Raises: LearnerError where a newer release began it, and this one cannot fold as that one does.
    """
    for shard in instance.shards(branch):
        fork = None
        with suppress(DamageError, StorageError):  # whoever reads the journal says so, and asks again
            if instance.has_branch(shard):
                fork = next(iter(counted(instance.journal(shard), shard, Cursor())), None)
        if isinstance(fork, Fork):
            instance.fold_spec.features(fork.fold_revision)
