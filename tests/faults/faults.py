"""`make faults`: real faults against a real broker and our own processes, and what is seen afterwards of each invariant.

    python tests/faults/faults.py [--quick] [--only NAME] [--minutes N] [--json]

One line a fault and one for each thing that was seen; at the end a table of the invariants I1 to I10, with the faults that
showed each. Exit status 1 where anything is red.

Source: the invariants and the faults are those of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import deaths
import disks
import doors
import logs_damaged as damage
import serving
from fault_proxy import proxy
from scene import Ground, Scene, Told

from millrace.learners.errors import MillraceError
from millrace.services.demo.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
INVARIANTS = {
    "I1": "each accepted record is learned exactly once, and nothing wrongly",
    "I2": "no acknowledged label is lost",
    "I3": "no request fails because of a fault or a swap",
    "I4": "the version on an answer exists and verifies",
    "I5": "no replica goes back to an older state",
    "I6": "one writer; whoever was replaced is fenced",
    "I7": "every record has one fate; rejected ones are dead letters with their reason",
    "I8": "memory and disk stay under their limits",
    "I9": "lag returns to zero",
    "I10": "what survived on disk folds to the same state",
}
Fault = Callable[[Ground, Scene], Told]
FAULTS: dict[str, Fault] = {
    "worker-killed": deaths.kill_worker,
    "broker-killed": deaths.kill_broker,
    "worker-frozen": deaths.freeze_worker,
    "network-broken": deaths.break_network,
    "records-expired": damage.expire,
    "topic-recreated": damage.recreate,
    "partitions-added": damage.add_partitions,
    "transactions-aborted": damage.leave_gaps,
    "log-compacted": damage.compact,
    "records-oversized": damage.oversize,
    "byte-flipped": damage.flip,
    **{f"bomb-{kind}": partial(damage.bomb, kind) for kind in damage.KINDS},
    "disk-full": disks.fill_up,
    "broker-disk-full": disks.fill_broker_up,
    "answerers-killed": doors.kill_answerers,
    "busy-starts": doors.start_busy,
}
SERVING, OF_SERVING = "serving", 2  # that many faults share one `millrace up`
SHORT = {
    "answerers-killed",
    "worker-killed",
    "broker-killed",
    "worker-frozen",
    "network-broken",
    "records-expired",
    "byte-flipped",
    "bomb-zstd",
}


def played(ground: Ground, names: Sequence[str]) -> Iterator[Told]:
    """Every fault in turn; one that raises is red, with what it said."""
    for name in names:
        begin_s = time.monotonic()
        try:
            outcomes = serving.while_serving(ground) if name == SERVING else [on_scene(ground, name)]
        except (AssertionError, RuntimeError, TimeoutError, MillraceError) as error:
            outcomes = [Told(name, "did not come to its end", [("I9", False, f"{type(error).__name__}: {error}")])]
        for told in outcomes:
            told.seconds = time.monotonic() - begin_s
            yield told


def on_scene(ground: Ground, name: str) -> Told:
    """One fault on a pipeline of its own."""
    scene = Scene(ground, name, 1)
    try:
        return FAULTS[name](ground, scene)
    finally:
        scene.close()


def say(told: Told, as_json: bool) -> None:
    """What was done, and what was seen."""
    if as_json:
        shown = [{"invariant": name, "holds": holds, "evidence": evidence} for name, holds, evidence in told.shown]
        line = {"fault": told.fault, "did": told.did, "green": told.green, "skipped": told.skipped, "shown": shown}
        print(json.dumps(line | {"seconds": round(told.seconds, 1)}), flush=True)
        return
    verdict = f"skipped: {told.skipped}" if told.skipped else "green" if told.green else "RED"
    print(f"{told.fault}: {told.did} ({told.seconds:.0f} s): {verdict}", flush=True)
    for name, holds, evidence in told.shown:
        print(f"  {name:4}{'' if holds else 'RED '}{evidence}", flush=True)


def table(all_told: Sequence[Told]) -> str:
    """Which faults showed each invariant."""
    lines = ["| | invariant | seen after | |", "|---|---|---|---|"]
    for name, says in INVARIANTS.items():
        faults = {told.fault: True for told in all_told if name in {invariant for invariant, _, _ in told.shown}}
        red = [told.fault for told in all_told if any(invariant == name and not holds for invariant, holds, _ in told.shown)]
        verdict = f"RED: {', '.join(red)}" if red else "green" if faults else "not shown"
        lines.append(f"| {name} | {says} | {', '.join(faults)} | {verdict} |")
    return "\n".join(lines)


def main(asked: argparse.Namespace) -> int:
    """Play what was asked for. 0 where all is green."""
    names = [asked.only] if asked.only else [name for name in [*FAULTS, SERVING] if not asked.quick or name in SHORT]
    home = os.environ.get("KAFKA_HOME")
    jars = Path(home) / "libs" if home else ROOT / ".kafka" / "jars"
    begin_s, all_told = time.monotonic(), list[Told]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-faults-")))
        between = stack.enter_context(proxy())
        broker = Broker(folder / "broker", jars, proxy=between.port)
        between.target = broker.behind
        broker.start()
        stack.callback(broker.stop)
        for told in played(Ground(broker, between, folder, asked.quick, asked.minutes), names):
            say(told, asked.json)
            all_told.append(told)
    green = all(told.green for told in all_told)
    if not asked.json:
        form = "short form" if asked.quick else f"the broker away for {asked.minutes:g} min"
        count = sum(not told.skipped for told in all_told)
        print(
            f"\n{table(all_told)}\n\n{count} faults ({form}) in {time.monotonic() - begin_s:.0f} s:",
            "green" if green else "RED",
        )
    return 0 if green else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short form, which `make test` runs")
    parser.add_argument("--only", choices=[*FAULTS, SERVING], help="one fault")
    parser.add_argument("--minutes", type=float, default=5.0, help="that the broker is away under `millrace up`")
    parser.add_argument("--json", action="store_true", help="a JSON line a fault")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parsed()))
