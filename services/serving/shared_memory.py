"""How large Ray's object store is: as large as /dev/shm has room for, since Ray puts it on a disk where it does not fit."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from millrace.learners.errors import MillraceError

log = logging.getLogger("millrace")

SHARED = Path("/dev/shm")
MOST_MIB = 256  # weights on their way to replicas
LEAST_MIB = 80  # of /dev/shm; Ray takes 75 at least
SHARE = 0.95  # of what is free there

TOO_SMALL = (
    "{} has {} MiB free, and Ray's object store, through which weights reach replicas, needs {}. Give it more: "
    "`--shm-size=512m` with docker, a volume `emptyDir: {{medium: Memory}}` mounted there with Kubernetes."
)


def object_store_bytes(shared: Path = SHARED) -> int:
    """What the store may take of a folder in memory. Raises: MillraceError where that is too little."""
    if not shared.is_dir():  # no Linux: Ray has a place of its own
        return MOST_MIB << 20
    space = os.statvfs(shared)
    free = space.f_bavail * space.f_frsize
    if free < LEAST_MIB << 20:
        raise MillraceError(TOO_SMALL.format(shared, free >> 20, LEAST_MIB))
    size = min(MOST_MIB << 20, int(SHARE * free))
    if size < MOST_MIB << 20:
        log.info("%s has %d MiB free, so Ray's object store has %d MiB and not %d", shared, free >> 20, size >> 20, MOST_MIB)
    return size
