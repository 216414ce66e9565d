"""A pipeline served by Ray: it learns while it answers, is rolled back under load, and every part of it may be killed."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_calls import Client, asked, length_prefixed
from open_sockets import open_sockets
from pipelines import MILLRACE, PIPELINE, flower_rows, json_lines, millrace, pipeline_in
from served_pipeline import CALLERS, Up, command_of, descendants, load, served, starting, until

from millrace.services.serving.listeners import title

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("served")]  # one instance serves them all


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One instance for all of these tests: learned 200 rows before, a version every 100."""
    folder = tmp_path_factory.mktemp("served")
    pipeline_in(folder, rows=200, text=PIPELINE + "version_rows = 100\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert millrace(*words, cwd=folder).returncode == 0
    with served(folder) as running:
        yield running


def send(up: Up, rows: int) -> None:
    """Append rows to the log."""
    (up.folder / "more.jsonl").write_bytes(b"\n".join(flower_rows(rows, seed=rows)))
    assert millrace("send", "digits.toml", "more.jsonl", cwd=up.folder).returncode == 0


def versions(up: Up) -> list[str]:
    """Of the branch, oldest first."""
    lines = json_lines(millrace("log", "digits.toml", "--output", "json", cwd=up.folder).stdout)
    return [line["said"]["version"] for line in lines if line["said"].get("version")]


def test_answers_follow_what_is_sent(up: Up) -> None:
    """Rows that were sent are in the answers soon after, and staleness says how soon."""
    before = up.answered()["parameters"]
    send(up, 60)
    sent_s = time.monotonic()
    until(lambda: up.answered()["parameters"]["seq"] > before["seq"])
    print(f"{time.monotonic() - sent_s:.3f} s from the end of `millrace send` to an answer that knows the rows")
    until(lambda: up.answered()["parameters"]["staleness_ms"] < 3000)
    assert up.answered()["parameters"]["branch"] == "main"


def test_grpc_answers_beside_http_with_the_same_scores_health_and_statistics(up: Up) -> None:
    """Through the front, without metadata; it listens on loopback alone."""

    async def talk() -> tuple[Any, Any, Any]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{up.grpc_port}") as channel:
            client = Client(channel)
            row = [("x", "FP64", [1, 4], np.array([3.0, 4, 5, 6]).tobytes()), ("site", "BYTES", [1], length_prefixed("north"))]
            answer = await client("ModelInfer", asked(*row, id="r7"))
            return answer, await client("Check", b""), await client("ModelStatistics", b"")

    answer, health, statistics = asyncio.run(talk())
    by_http = up.answered()
    assert answer.id == "r7" and answer.model_name == "digits" and health.status == 1
    assert answer.parameters["branch"].string_param == by_http["parameters"]["branch"] == "main"
    assert np.frombuffer(answer.raw_output_contents[0]).shape == (len(by_http["outputs"][0]["data"]),)
    assert statistics.model_stats[0].name == "digits"
    token = up.folder / ".millrace" / "digits" / "token"
    assert token.stat().st_mode & 0o777 == 0o600 and token.read_text().strip() not in (up.folder / "up.log").read_text()
    assert all(token.read_text().strip() not in command_of(pid) for pid in descendants(up.process.pid))
    own = {name for name, port in open_ports(up) if port in (up.port, up.grpc_port)}
    assert own == {"127.0.0.1"}


def rows_of_security_md(where: str) -> list[str]:
    """Names of the processes that listen there, as the table says."""
    table = (Path(__file__).resolve().parents[3] / "SECURITY.md").read_text().partition("| listens |")[2].partition("\n\n")[0]
    (row,) = [row for row in table.splitlines() if where in row]
    return re.findall(r"`([^`]+)`", row.split("|")[1])


def test_every_socket_is_one_that_security_md_names(up: Up) -> None:
    """Read from /proc, whatever `up` prints: the public ports, Ray's own, and our folder.

    Other machines reach one port of each replica of Serve alone, which answers nobody without Ray's token.
    """
    everywhere, here = rows_of_security_md("every interface"), rows_of_security_md("loopback, on ports that Ray draws")
    folder = next(Path(path).parent for path in command_of(up.pids("haproxy")[0]).split("\0") if path.endswith("front.cfg"))
    assert {path.stat().st_mode & 0o077 for path in (folder, folder.parent)} == {0}
    sockets = open_sockets([up.process.pid, *descendants(up.process.pid)])
    assert {opened.kind for opened in sockets} == {"tcp", "tcp6", "unix"}
    assert all(Path(opened.place).is_relative_to(folder.parent) for opened in sockets if opened.kind == "unix")
    public = [opened for opened in sockets if opened.place in (str(up.port), str(up.grpc_port))]
    assert {title(opened.pid) for opened in public} == {"haproxy", "python"} and all(opened.local for opened in public)
    drawn = [opened for opened in sockets if opened.kind != "unix" and opened not in public]
    open_to_all = {opened.pid: opened.place for opened in drawn if not opened.local}
    assert len(open_to_all) == sum(not opened.local for opened in drawn) >= 3, "one of each"
    assert {title(pid)[: len(name)] for pid in open_to_all for name in everywhere} == set(everywhere)
    assert {called_without_a_token(port) for port in open_to_all.values()} == {grpc.StatusCode.UNAUTHENTICATED}
    assert {title(opened.pid) for opened in drawn if opened.local} >= {"gcs_server", "raylet"}
    assert all(title(opened.pid).startswith(tuple(here)) for opened in drawn if opened.local)


def called_without_a_token(port: str) -> grpc.StatusCode:
    """What a server of Serve's between replicas says to a stranger."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"")
        code: grpc.StatusCode = refused.value.code()
        return code


def test_ray_as_it_listens_by_itself_is_found(tmp_path: Path) -> None:
    """The twin: without our two settings its parts can be reached from other machines, and one tells without a token."""
    pipeline_in(tmp_path, rows=1)
    as_it_comes = (
        "from millrace.services.serving import up; keep = up.set_environment; ours = ('RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER', "
        "'RAY_enable_metrics_collection'); up.set_environment = lambda all: keep({k: all[k] for k in all if k not in ours}); "
    )
    with starting(tmp_path, millrace=[*MILLRACE[:-1], as_it_comes + MILLRACE[-1]]) as plain:
        until(lambda: {"gcs_server", "raylet", "ray::DashboardA"} <= reached_from_elsewhere(plain))
        plain.process.terminate()


def reached_from_elsewhere(up: Up) -> set[str]:
    """Names of the processes that other machines can reach."""
    sockets = open_sockets([up.process.pid, *descendants(up.process.pid)])
    return {title(opened.pid) for opened in sockets if opened.kind != "unix" and not opened.local}


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_that_is_taken_is_refused_by_name(option: str, tmp_path: Path) -> None:
    """Before anything is started, with the option that names another."""
    pipeline_in(tmp_path, rows=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = millrace("up", "digits.toml", option, str(port), cwd=tmp_path)
    assert done.returncode == 1 and f"127.0.0.1:{port}" in done.stderr and f"give another {option}." in done.stderr


def open_ports(up: Up) -> list[tuple[str, int]]:
    """What `millrace up` said it listens on."""
    lines = [line.split() for line in (up.folder / "up.log").read_text().splitlines() if line.startswith("listens")]
    return [(place.rpartition(":")[0], int(place.rpartition(":")[2])) for _, place, *_ in lines]


def test_a_rollback_under_load_reaches_every_replica_without_a_failed_request(up: Up) -> None:
    """And back: the undo that is printed last is a command that works."""
    old = versions(up)[0]
    with load(up) as callers:
        until(lambda: len(callers.answers) > 50)
        done = millrace("rollback", "digits.toml", old, "--reason", "garbage", "--yes", cwd=up.folder)
        decided_s = time.monotonic()
        assert done.returncode == 0, done.stderr
        until(lambda: up.all_serve(f"version {old}"))
        told_s = time.monotonic()
        until(lambda: len(callers.since(told_s)) > 100)
        assert set(callers.since(told_s)) == {old}, "no replica goes back to what it answered before"
        wrong = [when for when, name in callers.answers if when >= decided_s and name != old]
        print(f"{max(wrong, default=decided_s) - decided_s:.3f} s from the command's end to the last other answer")
        assert "--follow main" in done.stderr.splitlines()[-1]
        assert millrace(*done.stderr.splitlines()[-1].split()[2:], cwd=up.folder).returncode == 0
        until(lambda: up.all_serve("the newest of main"))
        told_s = time.monotonic()
        until(lambda: len(callers.since(told_s)) > 100)
        assert old not in callers.since(told_s)
    assert callers.failed == []
    assert callers.cut == 0


@pytest.mark.parametrize("title", [":NewestWeights", ":Trainer", ":Predictor"])
def test_kill_9_of_any_part_and_the_answers_go_on(up: Up, title: str) -> None:
    """Ray starts it again, and what is learned afterwards reaches the answers."""
    before = up.pids(title)
    with load(up) as callers:
        until(lambda: len(callers.answers) > 50)
        dead = up.kill(title)
        killed_s = time.monotonic()
        back_s = until(lambda: dead not in up.pids(title) and len(up.pids(title)) == len(before))
        seq = up.answered()["parameters"]["seq"]
        send(up, 40 + len(title))
        fresh_s = until(lambda: up.answered()["parameters"]["seq"] > seq)
        until(lambda: len(callers.since(killed_s)) > 200)
    print(f"{title}: back after {back_s:.1f} s, its lessons in the answers {fresh_s:.1f} s later, {callers.closed} closed")
    assert callers.failed == []
    assert callers.cut <= (CALLERS if title == ":Predictor" else 0)
