"""What runs inside vLLM's worker beside what a swap is: the same file read and loaded with nothing around. By name."""

from __future__ import annotations

import time
from pathlib import Path

from safetensors.torch import load

from millrace.services.llm.in_worker import WEIGHTS, InWorker


class BareWorker(InWorker):
    """It can load a draft's file without a look at it."""

    def read_and_load(self, folder: str) -> float:
        """Seconds that it takes."""
        began_s = time.perf_counter()
        self.load_draft(load((Path(folder) / WEIGHTS).read_bytes()))
        return time.perf_counter() - began_s
