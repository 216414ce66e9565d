"""A worker in a process of its own that kills itself with SIGKILL; run by exactly_once.py, never imported by it.

Usage: dying_worker.py PIPELINE HOME PHASES [lossy]. It dies after so many phases of steps; 0: it runs to the log's end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from lossy import WithoutRemainder

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.host import this_host, use_threads
from millrace.streams.worker.worker import Worker, WorkerIdentity


def main(pipeline: str, home: str, phases: int, kind: type[Worker]) -> None:
    """Run, and die where told."""
    loaded = load_pipeline(Path(pipeline))
    instance = Instance(loaded, Path(home) / loaded.pipeline.name)
    use_threads(1)
    worker = kind(
        instance.fold_spec, instance.backends("main"), instance.loaded.pipeline.worker, WorkerIdentity("main", this_host(1))
    )
    while not worker.caught_up():
        for _ in worker.step():
            phases -= 1
            if phases == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        worker.mark_when_due()
    worker.close()


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]), WithoutRemainder if "lossy" in sys.argv else Worker)
