"""From the start of `millrace rollback --yes` to the last answer of another version, under the load of four callers.

make bench-rollback. Every answer is kept and none may fail. The peer is what no rollback can do without: a bare Python that
appends one committed row to a SQLite file, and the time until somebody who looks every 50 ms has seen it. Each step of
the way is a line of its own: the same command once more, in rollback_steps.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
from pipelines import PIPELINE, json_lines, millrace, pipeline_in
from results import compared, machine, say
from served_pipeline import Load, Up, load, served, until

from millrace.services.serving.follower import POLL_S

HERE = Path(__file__).resolve().parent
AIM_S = 1.0
ROW = "pragma synchronous=full; insert into decisions values (1)"
BARE = f"import apsw, sys; apsw.Connection(sys.argv[1]).execute({ROW!r}).fetchall()"


def versions(folder: Path) -> list[str]:
    """Of the branch, oldest first."""
    lines = json_lines(millrace("log", "digits.toml", "--output", "json", cwd=folder).stdout)
    return [str(line["said"]["version"]) for line in lines if line["said"].get("version")]  # type: ignore[index]


def went_back(up: Up, callers: Load, version: str) -> float:
    """Seconds from the command's start until nobody hears another version any more."""
    start_s = time.monotonic()
    done = millrace("rollback", "digits.toml", version, "--reason", "bench", "--yes", cwd=up.folder)
    assert done.returncode == 0, done.stderr
    return last_other(callers, version, start_s) - start_s


def last_other(callers: Load, version: str, start_s: float) -> float:
    """When somebody heard another version last, once nobody does any more."""
    until(lambda: {name for _, name in callers.answers[-200:]} == {version})
    return max((when for when, name in callers.answers if when >= start_s and name != version), default=start_s)


def steps(up: Up, callers: Load, version: str) -> dict[str, float]:
    """Seconds of each step of going back, in their order."""
    start_s = time.monotonic()
    command = [sys.executable, HERE / "rollback_steps.py", "digits.toml", version, "--reason", "bench", "--yes"]
    done = subprocess.run(command, cwd=up.folder, capture_output=True, check=True)
    over = {"start": start_s, **json.loads(done.stdout.splitlines()[-1])}
    over["replicas' next look"] = max(last_other(callers, version, start_s), over["ledger entry"])
    return {step: at_s - before_s for (step, at_s), before_s in zip(list(over.items())[1:], over.values(), strict=False)}


def follow_again(up: Up, callers: Load, version: str) -> None:
    """Until nobody hears the version any more."""
    done = millrace("serve", "digits.toml", "--follow", "main", "--reason", "undo", "--yes", cwd=up.folder)
    assert done.returncode == 0, done.stderr
    until(lambda: version not in {name for _, name in callers.answers[-200:]})


@contextmanager
def looking(path: Path) -> Iterator[list[float]]:
    """Look every POLL_S; when there was a row more than before."""
    seen: list[float] = []
    stop = threading.Event()

    def look() -> None:
        connection, known = apsw.Connection(str(path)), 0
        while not stop.wait(POLL_S):
            count = connection.execute("select count(*) from decisions").fetchall()[0][0]
            if count > known:
                seen.append(time.monotonic())
                known = count

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def bare(path: Path, seen: list[float]) -> float:
    """Seconds from a bare command's start until somebody has seen its row."""
    before, start_s = len(seen), time.monotonic()
    subprocess.run([sys.executable, "-c", BARE, path], check=True)
    until(lambda: len(seen) > before)
    return seen[-1] - start_s


def measured(up: Up, callers: Load, repeats: int) -> tuple[list[tuple[float, float]], list[dict[str, float]]]:
    """Ours and the peer's in turn, on the same loaded machine; back to the newest each time. And the steps of as many more."""
    path, first = up.folder / "bare.sqlite", versions(up.folder)[0]
    apsw.Connection(str(path)).execute("pragma journal_mode=wal; create table decisions (what)").fetchall()
    pairs, stepwise = [], []
    with looking(path) as seen:
        for _ in range(repeats):
            pairs.append((went_back(up, callers, first), bare(path, seen)))
            follow_again(up, callers, first)
            stepwise.append(steps(up, callers, first))
            follow_again(up, callers, first)
    return pairs, stepwise


def results(folder: Path, repeats: int) -> Iterator[dict[str, object]]:
    """Every case."""
    pipeline_in(folder, rows=300, text=PIPELINE + "version_rows = 100\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    with served(folder) as up, load(up) as callers:
        until(lambda: len(callers.answers) > 200)
        pairs, stepwise = measured(up, callers, repeats)
    counted = {"answers": len(callers.answers), "failed": len(callers.failed) + callers.cut, "reconnected": callers.closed}
    yield compared("rollback", "vs a bare row", "s", pairs, ("python -c, one row, seen every 50 ms", None)) | counted
    for step in stepwise[0]:
        seconds = round(statistics.median(times[step] for times in stepwise), 3)
        yield {"bench": "rollback", "case": f"of which {step}", "unit": "s", "ours": seconds} | counted
    worst = max(mine for mine, _ in pairs)
    yield compared("rollback", "slowest, vs the aim", "s", [(worst, AIM_S)], ("1 s", 1.0)) | counted


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    say(machine("rollback"))
    with tempfile.TemporaryDirectory() as folder:
        for line in results(Path(folder), arguments.repeats):
            say(line)
            assert line["failed"] == 0, line


if __name__ == "__main__":
    main()
