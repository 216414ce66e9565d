"""What else may die while a pipeline is served: Serve's controller, the front, the log's disk, the store. Answers go on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipelines import MILLRACE, fill, flower_rows, make_read_only, millrace, pipeline_in, small_disk
from served_pipeline import CALLERS, Up, load, served, starting, until

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("crashes")]


WITH_TOKEN = [sys.executable, "-c", "import os; os.environ['MILLRACE_TOKEN'] = 'not-to-be-handed-on'; " + MILLRACE[-1]]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One instance for all of these tests; its log and its store are small disks of their own."""
    folder = tmp_path_factory.mktemp("crashes")
    home = folder / ".millrace" / "digits"
    with small_disk(home, 64 << 10), small_disk(home / "store", 16 << 10):
        pipeline_in(folder, rows=200)
        for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
            assert millrace(*words, cwd=folder).returncode == 0
        with served(folder) as running:
            yield running


def send(up: Up, rows: int, seed: int) -> subprocess.CompletedProcess[str]:
    """Append rows to the log."""
    (up.folder / "more.jsonl").write_bytes(b"\n".join(flower_rows(rows, seed=seed)))
    return millrace("send", "digits.toml", "more.jsonl", cwd=up.folder)


def seq_of(up: Up) -> int:
    """Of the state that answers; a front that has just been replaced is waited for until it knows the replicas."""
    return up.answered()["parameters"]["seq"]


def learns(up: Up, seed: int) -> None:
    """What is sent now is in the answers soon."""
    seq = seq_of(up)
    assert send(up, 40, seed).returncode == 0
    until(lambda: seq_of(up) > seq)


def test_serves_controller_dies_and_no_request_fails(up: Up) -> None:
    """Requests go from the front straight to the replicas; Ray starts the controller again."""
    with load(up) as callers:
        until(lambda: len(callers.answers) > 50)
        dead = up.kill("ServeController")
        killed_s = time.monotonic()
        back_s = until(lambda: [pid for pid in up.pids("ServeController") if pid != dead] != [])
        until(lambda: len(callers.since(killed_s + back_s)) > 200)
    print(f"the controller was back after {back_s:.1f} s, {callers.closed} kept connections were closed")
    assert callers.failed == []
    learns(up, 1)


def test_controller_newest_weights_and_a_replica_die_together_and_no_request_fails(up: Up) -> None:
    """The front knows replicas by their sockets, so it needs nobody else to find the one that is left, or the new one."""
    titles = ("ServeController", ":NewestWeights", ":Predictor")
    counts = {title: len(up.pids(title)) for title in titles}
    with load(up) as callers:
        until(lambda: len(callers.answers) > 50)
        dead = {up.kill(title) for title in titles}
        killed_s = time.monotonic()
        until(lambda: all(not dead & set(up.pids(title)) and len(up.pids(title)) == counts[title] for title in titles))
        until(lambda: up.all_serve("the newest of main") and len(callers.since(killed_s)) > 200)
    assert callers.failed == [] and callers.cut <= CALLERS
    learns(up, 7)


def test_the_front_dies_and_whoever_connects_meanwhile_waits(up: Up) -> None:
    """`up` holds the ports: nobody is refused, only what was under way is cut, and learning goes on."""
    seq = seq_of(up)
    with load(up) as callers:
        until(lambda: len(callers.answers) > 50)
        dead = up.kill("haproxy")
        killed_s = time.monotonic()
        assert send(up, 40, 2).returncode == 0
        until(lambda: dead not in up.pids("haproxy") and len(callers.since(killed_s + 1)) > 50)
    back_s = min(when for when, _ in callers.answers if when > killed_s) - killed_s
    print(f"the front answered again {back_s:.1f} s after kill -9")
    kinds = {failed[:3] if failed[0].isdigit() else failed.partition("(")[0] for failed in callers.failed}
    assert kinds <= {"ConnectionResetError", "BrokenPipeError", "RemoteDisconnected"}, kinds
    until(lambda: seq_of(up) > seq)


def environment_of(pid: int) -> bytes:
    """Nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_raylet_dies_and_up_ends_in_a_sentence(tmp_path: Path) -> None:
    """Nothing here can start it again, so whoever supervises `up` has to hear of it. Until then nobody else had the token."""
    pipeline_in(tmp_path, rows=1)
    with served(tmp_path, ready=False, millrace=WITH_TOKEN) as up:
        environments = [environment_of(pid) for pid in up.pids("ray") + up.pids("haproxy")]
        assert len(environments) > 5 and not any(b"MILLRACE_TOKEN" in environment for environment in environments)
        up.kill("/raylet/raylet")
        until(lambda: up.process.poll() is not None)
        assert up.process.returncode == 1
        assert "Ray has died here (raylet)" in (tmp_path / "up.log").read_text()


def test_a_token_that_stays_in_the_environment_is_found(tmp_path: Path) -> None:
    """The twin: `up` as it was, which read the token and left it there for everything that it starts."""
    pipeline_in(tmp_path, rows=1)
    leaves = "from millrace.services.config import config; config.taken_endpoint_token = config.endpoint_token; "
    with starting(tmp_path, millrace=[*WITH_TOKEN[:-1], leaves + WITH_TOKEN[-1]]) as up:
        until(lambda: any(b"MILLRACE_TOKEN=not-to-be" in environment_of(pid) for pid in up.pids("gcs_server")))
        up.process.terminate()


def test_the_logs_disk_is_full_and_answers_go_on(up: Up) -> None:
    """What cannot be appended is refused in a sentence; when there is room again, learning goes on by itself."""
    home = up.folder / ".millrace" / "digits"
    with load(up) as callers:
        until(lambda: len(callers.answers) > 50)
        try:
            fill(home)
            refused = send(up, 4000, 3)
            full_s = time.monotonic()
            until(lambda: len(callers.since(full_s)) > 300)
        finally:
            (home / "ballast").unlink()
    assert refused.returncode == 1 and "disk" in refused.stderr
    assert callers.failed == []
    learns(up, 4)


def test_the_store_is_read_only_and_answers_go_on(up: Up) -> None:
    """Checkpoints and versions wait; when it can be written again, a version is marked at the end."""
    store = up.folder / ".millrace" / "digits" / "store"
    with load(up) as callers:
        until(lambda: len(callers.answers) > 50)
        make_read_only(store)
        try:
            learns(up, 5)
            read_only_s = time.monotonic()
            until(lambda: len(callers.since(read_only_s)) > 300)
        finally:
            subprocess.run(["mount", "-o", "remount,rw", Path(store)], check=True)
    assert callers.failed == []
    learns(up, 6)
