"""What a benchmark prints: the machine, and one JSON line a case."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence

from millrace.streams.branch.host import this_host

Pairs = Sequence[tuple[float, float]]  # ours and the peer's, measured one after the other


def say(line: dict[str, object]) -> None:
    """Print one line."""
    print(json.dumps(line), flush=True)


def machine(bench: str) -> dict[str, object]:
    """Where this ran, and what else ran there."""
    load = round(os.getloadavg()[0], 2)
    return {"bench": "machine", "of": bench, "cores": os.cpu_count(), "blas": this_host(1).blas, "threads": 1, "load": load}


def compared(bench: str, case: str, unit: str, pairs: Pairs, against: tuple[str, float | None]) -> dict[str, object]:
    """Medians, and the median of the ratios pair by pair; higher is better for us, so upside down where the unit is a time."""
    ratios = sorted(ours / peer if unit.endswith("/s") else peer / ours for ours, peer in pairs)
    medians = [float(f"{statistics.median(side):.4g}") for side in zip(*pairs, strict=True)]
    numbers = {"ours": medians[0], "peer": medians[1], "peer_name": against[0]}
    told = {"bench": bench, "case": case, "unit": unit, **numbers, "ratio": round(statistics.median(ratios), 3)}
    return told | {"ratios": [round(ratio, 3) for ratio in ratios], "goal": against[1]}
