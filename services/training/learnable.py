"""A branch that no trainer could take is refused before anything is served: nobody would learn it while it answered."""

from __future__ import annotations

import logging
from contextlib import suppress

from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.pipeline.succession import heir_of
from millrace.streams.errors import DamageError, StorageError
from millrace.streams.journal.entries import Fork
from millrace.streams.journal.journal import Cursor, counted

log = logging.getLogger("millrace")


def refuse_unlearnable(instance: Instance, branch: str) -> None:
    """Nothing where a trainer can begin the branch, or go on with it.

    Raises: LearnerError where a newer release began it, and this one cannot fold as that one does; ConfigError where it was
    begun with another configuration than the pipeline file says, or none begins with that; DamageError where it has read other
    topics.
    """
    fold_spec = instance.fold_spec
    for shard in instance.shards(branch):
        fork = None
        with suppress(DamageError, StorageError):  # whoever reads the journal says so, and asks again
            if instance.has_branch(shard):
                fork = next(iter(counted(instance.journal(shard), shard, Cursor())), None)
        if isinstance(fork, Fork):
            fold_spec.features(fork.fold_revision)
            fold_spec.check(fork, instance.backends(shard, fork))
        elif fold_spec.drift is not None:
            fold_spec.drift.refuse_new()


def going_on(instance: Instance, branch: str) -> str:
    """The branch itself; where it has ended in favour of another, that one, which is said."""
    with suppress(DamageError, StorageError):  # as above
        if instance.has_branch(branch) and (heir := heir_of(Archive(instance), branch)) != branch:
            log.info("Branch %s has ended, and %s goes on in its place.", branch, heir)
            return heir
    return branch
