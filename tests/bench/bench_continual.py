"""Every learner on split MNIST and split CIFAR-10: what it keeps, forgets, costs; mammoth's beside ours, on the same rows.

python tests/bench/bench_continual.py [--quick] [--mammoth CHECKOUT --peer-python PYTHON] [--jobs 2] [--table]

Data from $MILLRACE_DATA or ../shared/data. Each run leaves one file in --folder, and what is there is not run again: stop it
and call it again at will. Rates are chosen first, by runs on a seed that is in no table. Writes table.md and table.png there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from continual_runs import FULL, QUICK, Request, asked_for, best_rates, kept, loaded, peer_run, searched, taught
from continual_table import drawn, markdown, printed
from results import machine, say

from millrace.streams.branch.host import use_threads

Told = tuple[Path, Path, str, str]  # data, folder, the peer's python and checkout


def run_request(request: Request, told: Told) -> dict[str, Any]:
    """A run, in a process that does one at a time."""
    data, folder, python, checkout = told
    if request.side != "ours":
        return kept(request, folder, partial(peer_run, request, data, python, checkout))

    def run() -> dict[str, Any]:
        return taught(request, loaded(request.stream, request.seed, request.rows, data, folder))

    use_threads(1)
    return kept(request, folder, run)


def all_of(requests: list[Request], told: Told, jobs: int) -> list[dict[str, Any]]:
    """Every run, the ones already there read; progress on stderr."""
    runs = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run_request, request, told): request for request in requests}
        for at, done in enumerate(as_completed(waiting), 1):
            runs.append(done.result())
            accuracy = runs[-1]["accuracy"]
            print(f"{at}/{len(requests)} {waiting[done].name}: accuracy {accuracy:.3f}", file=sys.stderr, flush=True)
    return runs


def finished_runs(requests: Iterable[Request], folder: Path) -> list[dict[str, Any]]:
    """The runs that have finished."""

    def missing() -> dict[str, Any]:
        raise FileNotFoundError

    runs = []
    for request in requests:
        try:
            runs.append(kept(request, folder, missing))
        except FileNotFoundError:
            continue
    return runs


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one seed, one buffer: under ten minutes")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of what has finished")
    parser.add_argument("--mammoth", default="", help="a clone of aimagelab/mammoth; without it ours run alone")
    parser.add_argument("--peer-python", default=".venv-continual/bin/python", help="what mammoth runs in")
    parser.add_argument("--folder", default=".bench-continual", help="where runs and tables are kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, write the table, print one JSON line a comparison."""
    told = options()
    size = QUICK if told.quick else FULL
    folder = Path(told.folder).absolute() / ("quick" if told.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ.get("MILLRACE_DATA") or "../shared/data").absolute()
    rest = (data, folder, str(Path(told.peer_python).absolute()), str(Path(told.mammoth).absolute()))
    sides = ("ours", "mammoth") if told.mammoth else ("ours",)
    search = searched(size, sides)
    rates = best_rates(finished_runs(search, folder) if told.table else all_of(search, rest, told.jobs))
    requests = asked_for(size, rates)
    runs = finished_runs(requests, folder) if told.table else all_of(requests, rest, told.jobs)
    (folder / "table.md").write_text(markdown(runs, len(requests)))
    drawn(runs, folder / "table.png")
    say(machine("continual"))
    for line in printed(runs):
        say(line)


if __name__ == "__main__":
    main()
