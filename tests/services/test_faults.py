"""`make faults` in its short form, and that it would say so where something did not hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import FAULTS, INVARIANTS, OF_SERVING, ROOT, SHORT, table
from house_documents import count_of
from pipelines import lacks
from scene import Told
from serving import of_two_that_go_forward

from millrace.services.demo.broker import Broker
from millrace.streams.errors import StorageError

TIMEOUT_S = 1800  # of all of them


def test_a_fault_is_red_where_one_thing_does_not_hold_or_nothing_was_seen() -> None:
    """And the table names it beside its invariant."""
    held, broken = Told("a", "", [("I1", True, "")]), Told("b", "", [("I1", True, ""), ("I6", False, "")])
    assert held.green and not broken.green and not Told("c", "").green
    lines = {line.split(" ")[1]: line for line in table([held, broken]).splitlines()[2:]}
    assert lines.keys() == INVARIANTS.keys()
    assert lines["I1"].endswith("| a, b | green |") and lines["I6"].endswith("| b | RED: b |")
    assert lines["I2"].endswith("|  | not shown |")


def test_the_documents_count_faults_and_invariants() -> None:
    """README and docs/reliability.md say how many there are, and the page has a row for each fault, as that was last played."""
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/reliability.md"))
    played = re.findall(r"^\| [^|]+ \| \d+ \| \w+ \|$", page, re.MULTILINE)
    assert count_of(readme, "under COUNT faults") == len(FAULTS) + OF_SERVING == len(played)
    assert count_of(readme, "[COUNT invariants under") == count_of(page, "COUNT invariants I1 to I10") == len(INVARIANTS)
    assert count_of(page, "a short form of COUNT.") == len(SHORT)
    assert count_of(readme.replace("twenty-one", "twenty-two"), "under COUNT faults") != len(played)


def test_answers_of_two_replicas_that_only_go_forward_are_told_from_one_that_goes_back() -> None:
    """Three that fall cannot come from two that do not."""
    assert of_two_that_go_forward([1, 5, 2, 5, 3, 6, 6]) and of_two_that_go_forward([])
    assert not of_two_that_go_forward([1, 5, 4, 3]) and not of_two_that_go_forward([9, 5, 9, 9, 4])


@pytest.mark.slow
@pytest.mark.xdist_group("kafka")
def test_the_short_form_is_green(tmp_path: Path) -> None:
    """Eight faults on a broker of its own."""
    home = os.environ.get("KAFKA_HOME")
    try:
        Broker(tmp_path, Path(home) / "libs" if home else ROOT / ".kafka" / "jars")
    except StorageError as error:
        lacks(f"no Kafka: {error}")
    shared = ("faults", "services/support", "streams/support")
    folders = [str(ROOT / "tests" / place) for place in shared]
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, ROOT / "tests" / "faults" / "faults.py", "--quick"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(SHORT)} faults (short form)" in done.stdout and "RED" not in done.stdout
