"""What a served pipeline costs while nothing happens: processor time and memory of each of its processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from served_pipeline import Up

from millrace.services.processes import TICKS_S
from millrace.services.serving.listeners import family, title

SETTLE_S, LOOK_S = 10.0, 20.0  # after its start, and that are looked at


def spent(up: Up) -> dict[int, float]:
    """Seconds of processor time of each process of `up`, by pid."""
    return {pid: seconds(pid) for pid in family(up.process.pid)}


def seconds(pid: int) -> float:
    """Of one; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:13])) * TICKS_S


def proportional_mb(pid: int) -> float:
    """Its share of memory, MB: what it shares with others counts in parts."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def idle(up: Up) -> Iterator[dict[str, object]]:
    """A line for the processor, one for memory, each with its parts by process; the limits are those that we set ourselves."""
    time.sleep(SETTLE_S)
    before, start_s = spent(up), time.monotonic()
    time.sleep(LOOK_S)
    after, looked_s = spent(up), time.monotonic() - start_s
    shares, sizes = Counter[str](), Counter[str]()
    for pid, now_s in after.items():
        shares[title(pid)] += 100 * (now_s - before.get(pid, now_s)) / looked_s
        sizes[title(pid)] += proportional_mb(pid)
    for unit, parts, limit in (("% of a core", shares, 25.0), ("MB, proportional", sizes, 1400.0)):
        total = sum(parts.values())
        told = {"unit": unit, "ours": round(total, 1), "peer": limit, "peer_name": "the line", "ratio": round(limit / total, 2)}
        yield {"bench": "serve", "case": f"idle, {unit}", **told, "goal": 1.0, "by_process": by_process(parts)}


def by_process(parts: Counter[str]) -> dict[str, float]:
    """The largest first, without those that are nothing."""
    return {name: round(part, 1) for name, part in parts.most_common() if part >= 0.05}
