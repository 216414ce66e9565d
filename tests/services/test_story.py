"""The story of `make run`, played for real: processes, kill -9, and a report that says what the log says."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pipelines import TIMEOUT_S
from served_pipeline import command_of, descendants, until

from millrace.learners.errors import MillraceError
from millrace.services.api import LateLabel, Pipeline
from millrace.services.config.config import load_pipeline
from millrace.services.config.names import BRANCH
from millrace.services.data.datasets import held_out
from millrace.services.decisions.status import journal_lines
from millrace.services.demo.callers import CallLog
from millrace.services.demo.evidence import Evidence, account, gather
from millrace.services.demo.night import POISON_ROWS, PRODUCER, lines_of
from millrace.services.demo.repaired import learned_by, learned_without, producers_of_labels
from millrace.services.demo.report import Killed, StoryResults, text
from millrace.services.demo.stage import FIRST_ROWS, HONEST, LABEL_AFTER_ROWS, DemoPlan, DemoStage, newest_output
from millrace.services.demo.story import Played, conclude, prepare, prove
from millrace.services.errors import NotProvedError, exit_code
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import load_part
from millrace.streams.branch.difference import difference
from millrace.streams.sqlite.database import connect

for package in ("sklearn", "matplotlib", "plotext", "ray"):
    pytest.importorskip(package, reason=f"{package} (the extra demo) is not installed")

pytestmark = pytest.mark.xdist_group("story")  # one worker plays it once

STORY = [sys.executable, "-P", "-W", "error", "-m", "millrace.services.demo.story"]
NAME = "story-digits"
SECONDS = 8.0  # of the stream; `make run` takes longer over it
STORY_S = 3 * TIMEOUT_S  # a story that takes longer hangs


@dataclass(frozen=True, slots=True)
class Told:
    """A story that has come to its end."""

    home: Path
    code: int
    out: str
    err: str


def stage_in(home) -> DemoStage:
    """The stage of a story of digits that was played in ``home``."""
    folder = home / NAME
    stream = folder / "stream.jsonl"
    instance = Instance(load_pipeline(folder / "pipeline.toml"), folder)
    rows = len(stream.read_bytes().splitlines())
    return DemoStage(
        DemoPlan("digits", 0, SECONDS, 0, home), folder / "pipeline.toml", stream, rows, 0, instance, instance.backends(BRANCH)
    )


def outputs_in(home) -> list[dict]:
    """What the steps let out, each once, read from the database without our code."""
    connection = connect(home / NAME / "log.sqlite", "select 1")
    query = "select log_table from partitions where tp = ?"
    table = connection.execute(query, (f"{NAME}.scores:0",)).fetchone()[0]
    stored = [msgspec.json.decode(value) for (value,) in connection.execute(f"select value from {table} order by offset")]
    connection.close()
    return list({(output["branch"], output["seq"]): output for output in stored}.values())


def change_one_byte(home, offset) -> None:
    """Another digit in the value of one record; its checksum stays as it was."""
    connection = connect(home / NAME / "log.sqlite", "select 1")
    table = connection.execute("select log_table from partitions where tp = ?", (f"{NAME}:0",)).fetchone()[0]
    value = bytearray(connection.execute(f"select value from {table} where offset = ?", (offset,)).fetchone()[0])
    at = value.index(b"[") + 1
    value[at] = ord("1") if value[at] != ord("1") else ord("2")
    connection.execute(f"update {table} set value = ? where offset = ?", (bytes(value), offset))
    connection.close()


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Told:
    """The digits, at a faster pace."""
    home = tmp_path_factory.mktemp("story")
    done = subprocess.run(
        [*STORY, "--no-night", "--seconds", str(SECONDS), "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=STORY_S,
        check=False,
    )
    return Told(home, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def evidence(played) -> Evidence:
    """What the played story has left."""
    return gather(stage_in(played.home).instance, held_out("digits"))


def number(played, line, column) -> float:
    """One number of the report's table."""
    return float(re.search(rf"^{line}  .*$", played.out, re.MULTILINE)[0].removeprefix(line).split()[column])


@pytest.mark.slow
def test_the_story_is_proved_and_ends_well(played) -> None:
    """The digits are learned through two kills, verified, and every row is accounted for."""
    assert played.code == 0, played.err
    assert "VERIFY   proved: " in played.out
    assert (
        "COUNTED  2,820 records in the log = 1,442 learned, 0 passed, 0 rejected, 1,378 labels that met their rows, 0 waiting"
        in (played.out)
    )


@pytest.mark.slow
def test_two_trainers_were_really_killed(played) -> None:
    """Three processes wrote the branch; the first two are gone."""
    killed = [int(pid) for pid in re.findall(r"kill -9 of trainer (\d+) at", played.err)]
    assert len(set(killed)) == 2
    assert all(not Path(f"/proc/{pid}").exists() for pid in killed)
    entries = list(journal_lines(stage_in(played.home).instance, BRANCH))
    opened = [at for at, entry in enumerate(entries) if entry["kind"] == "open"]
    assert [entries[at]["epoch"] for at in opened] == [1, 2, 3]


@pytest.mark.slow
def test_callers_were_answered_over_both_protocols_while_it_learned(played) -> None:
    """None failed through both kills; how good they became is the night's to say, where no trainer is killed at this pace."""
    answered = re.search(
        r"^ANSWERED (\d+) requests over HTTP and (\d+) over gRPC, 0 failed; (\d+)% right in the first tenth, (\d+)% ",
        played.out,
        re.MULTILINE,
    )
    by_http, by_grpc, first, _ = map(int, answered.groups())
    assert by_http > 20 < by_grpc and first < 90


@pytest.mark.slow
def test_the_report_says_what_the_log_says(played) -> None:
    """Whole-stream scores equal those computed here from the raw outputs, the baselines those from the raw labels."""
    last = outputs_in(played.home)[-1]
    own, late = last["scores"], last["served_scores"]
    for line, total in (("millrace", "correct"), ("last label", "correct_last"), ("majority", "correct_majority")):
        assert number(played, line, 0) == round((own[total] + late[total]) / 1442, 3)
    labels = [msgspec.json.decode(row)["digit"] for row in (played.home / NAME / "stream.jsonl").read_bytes().splitlines()]
    for scores, part in ((own, labels[:FIRST_ROWS]), (late, labels[FIRST_ROWS:])):
        assert scores["correct_last"] == sum(a == b for a, b in pairwise(part))
        assert scores["rows"] == len(part)
    assert len(labels) == 1442


@pytest.fixture(scope="module")
def unhurried(tmp_path_factory) -> tuple[list[dict], Evidence, dict]:
    """The rows, what is left where each is answered by the newest model and labelled at once, and its proof; in one process.

    No pace, no processor and no kill has a part in it: a trainer that is away lets answers grow stale, and alarms with them.
    """
    stage = prepare(DemoPlan("digits", 0, SECONDS, 0, tmp_path_factory.mktemp("unhurried")))
    rows, pipeline = [msgspec.json.decode(line) for line in stage.lines()], Pipeline.load(stage.pipeline, home=stage.plan.home)
    pipeline.append(rows[:FIRST_ROWS])
    for at in range(FIRST_ROWS, len(rows), LABEL_AFTER_ROWS):
        pipeline.learn()
        asked = rows[at : at + LABEL_AFTER_ROWS]
        answers = pipeline.predict([{"x": row["x"]} for row in asked])
        pipeline.append_served(answers.served([f"day/{at + number}" for number in range(len(asked))]))
        pipeline.append_served([LateLabel(f"day/{at + number}", row["digit"]) for number, row in enumerate(asked)])
    pipeline.learn()
    return rows, gather(stage.instance, held_out("digits")), prove(stage)


@pytest.mark.slow
def test_an_alarm_that_goes_with_a_class_never_seen_says_so(unhurried) -> None:
    """It is told with the class and its first row, which is where the stream has it, and the version that followed is there."""
    rows, evidence, verdict = unhurried
    (told,) = [one for one in evidence.raised if one.alarm.direction == "worse"]
    joined = {label: one.row for one in evidence.joined for label in one.labels}
    out = text(StoryResults("", evidence, [Killed(0, 0, 0)] * len(evidence.resumed), CallLog(), verdict, 100))
    named = re.findall(r"class (\d) had never been seen before row ([\d,]+)", out)
    assert [name for name, _ in named] == [*told.alarm.new_classes] and "so it is no fault" in out
    labels = [str(row["digit"]) for row in rows]
    assert all(int(row.replace(",", "")) == joined[name] == labels.index(name) for name, row in named)
    assert told.version in {version.name for version in evidence.versions}
    assert f"version {told.version} marked" in out


@pytest.mark.slow
def test_the_windowed_scores_are_differences_of_the_totals(played) -> None:
    """The last window of the table is what was counted between two outputs about a hundred rows apart."""
    parts = [(output["scores"], output["served_scores"]) for output in outputs_in(played.home)]
    totals = [{name: own[name] + late[name] for name in ("rows", "correct")} for own, late in parts]
    end = totals[-1]
    start = [total for total in totals if total["rows"] <= end["rows"] - 100][-1]
    share = (end["correct"] - start["correct"]) / (end["rows"] - start["rows"])
    assert number(played, "millrace", 1) == round(share, 3)


@pytest.mark.slow
def test_the_model_beats_its_baselines(played, unhurried) -> None:
    """Real learning: far above both baselines though every label comes late, and well on rows it never saw.

    Where its trainers are killed at this pace, answers grow as stale as a busy machine makes them.
    """
    assert number(played, "millrace", 0) > number(played, "last label", 0) > number(played, "majority", 0)
    assert number(played, "millrace", 2) > 0.95
    last = unhurried[1].outputs[-1]
    right, of_label, of_majority = (
        (last.scores[name] + last.served_scores[name]) / 1442 for name in ("correct", "correct_last", "correct_majority")
    )
    assert right > 0.85 > 0.3 > of_label > of_majority


@pytest.mark.slow
def test_held_out_accuracy_grows_with_the_versions(evidence) -> None:
    """Classes that have not joined yet are missed, so the versions score better and better."""
    scores = [version.score for version in evidence.versions]
    assert len(scores) >= 10
    assert scores[0] < 0.6 < 0.95 < scores[-1]


@pytest.mark.slow
def test_a_lost_step_is_noticed(played, evidence) -> None:
    """The accounts hold for the outputs as they are, and not once one of them is missing."""
    assert account(evidence, 2820) == []
    del (outputs := list(evidence.outputs))[5]
    assert "exactly once" in account(replace(evidence, outputs=outputs), 2820)[0]
    assert "were sent" in account(evidence, 2821)[0]


@pytest.mark.slow
def test_the_picture_shows_the_curves_and_the_kills(played) -> None:
    """The PNG is large enough to read and has our blue, the held-out orange and both red lines in it."""
    from matplotlib.image import imread

    pixels = (imread(played.home / NAME / "accuracy.png")[:, :, :3] * 255).round().astype(int)
    assert pixels.shape[0] > 600 < pixels.shape[1]
    blue, orange, red = (np.abs(pixels - colour).max(axis=2) < 8 for colour in ((31, 95, 191), (217, 84, 30), (192, 28, 40)))
    assert blue.sum() > 2000 < orange.sum() * 2
    upright = np.flatnonzero(red.sum(axis=0) > 300)  # columns
    assert 1 + int((np.diff(upright) > 3).sum()) == 2


@pytest.mark.slow
def test_the_terminal_plot_is_plain_text(played) -> None:
    """In a pipe there is no escape sequence, no line is too long, and the curves are marked."""
    assert "\x1b" not in played.out + played.err
    plot = played.out[played.out.index("┌") : played.out.index("PICTURE")]
    assert max(map(len, plot.splitlines())) <= 110
    assert all(mark in plot for mark in ("*", ".", "-", "o", "║", "┊"))


@pytest.mark.slow
def test_one_changed_byte_in_the_log_is_named(played, tmp_path) -> None:
    """The twin: the same story with one byte of one record changed before verify fails, and says which record."""
    home = tmp_path / "copy"
    shutil.copytree(played.home, home)
    assert prove(stage_in(home))["findings"] == 0
    change_one_byte(home, 30)
    with pytest.raises(NotProvedError, match=rf"{NAME}:0 offset 30 is not what was appended.*First bad mark: seq") as failed:
        conclude(stage_in(home), Played([], CallLog()))
    assert exit_code(failed.value) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_story_leaves_no_process_behind(number, tmp_path) -> None:
    """Ctrl-C and SIGTERM end the story with a failure, and server and sender with it, and all that Ray started."""
    story = subprocess.Popen([*STORY, "--seconds", "60", "--home", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    server = int(re.search(r"server (\d+) starts", story.stderr.readline())[1])
    sender = int(re.search(r"sender (\d+) sends", story.stderr.readline())[1])
    started = [server, sender, *descendants(server)]
    assert len(started) > 8
    os.kill(story.pid, number)
    story.communicate(timeout=STORY_S)
    assert story.returncode == 1
    until(lambda: not any(map(command_of, started)))


@pytest.mark.slow
def test_a_regression_is_told_in_its_unit(data_dir, tmp_path, monkeypatch) -> None:
    """For numbers the table and the plots show mean absolute errors beside the last value and the mean."""
    pytest.importorskip("pyarrow", reason="pyarrow, which reads the shared data, is not installed")
    monkeypatch.setenv("MILLRACE_DATA", str(data_dir))
    command = [*STORY, "--data", "metro_traffic", "--rows", "2000", "--seconds", "6", "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STORY_S, check=False)
    assert done.returncode == 0, done.stderr
    errors = [
        float(line.split()[-2].replace(",", "")) for line in re.findall(r"^(?:millrace|mean so far) .*$", done.stdout, re.M)[1:]
    ]
    assert errors[0] < errors[1] / 2
    assert "2,000 rows were sent (46,204 more were left out" in done.stdout
    assert (tmp_path / "story-metro_traffic" / "accuracy.png").stat().st_size > 20_000


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Told:
    """The whole story, the night call with it."""
    home = tmp_path_factory.mktemp("night")
    command = [*STORY, "--seconds", "8", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STORY_S, check=False)
    return Told(home, done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_the_night_call_is_put_right_and_the_model_is_as_if_the_poison_had_never_been(night) -> None:
    """Alarm, rollback, replay without the producer, take-over: in this order, no request fails, both branches are proved."""
    assert night.code == 0, night.err
    shown = night.out[night.out.index("THE NIGHT CALL") :]
    wrong, onset, truth = re.search(r"after (\d+) wrong labels: .* about row ([\d,]+) \(in truth ([\d,]+)\)", shown).groups()
    assert int(wrong) < 100 and abs(int(onset.replace(",", "")) - int(truth.replace(",", ""))) < 40
    happened = ["begins to label", "ALARM of the pipeline", "rollback: every answer is main.", "replay without", "take-over: "]
    assert [shown.index(what) for what in happened] == sorted(shown.index(what) for what in happened)
    assert re.search(r"ANSWERED (\d+) honest requests, 0 failed", shown)
    right = {when: int(share) for share, when in re.findall(r"(\d+)% (before|poisoned|rolled back|repaired)", shown)}
    assert len(right) == 4 and min(right["before"], right["rolled back"], right["repaired"]) > 60
    repaired, poisoned = re.search(r"REPAIRED (\S+) of its sums .* one (\S+)$", shown, re.MULTILINE).groups()
    assert float(repaired) <= 1e-8 < 0.01 < float(poisoned)
    rows, poisoned_8, repaired_8 = map(
        int, re.search(r"of the (\d+) digits 3 .* calls (\d+) an 8, .* one (\d+)$", shown, re.M).groups()
    )
    assert rows == 36 and poisoned_8 >= 5 > 1 >= repaired_8
    assert re.search(r"rollback [\d.]+ s to the last replica; replay .* records/s; .* take-over [\d.]+ s", shown)
    assert re.search(r"^TOTAL +\d+ s$", night.out, re.MULTILINE)
    look_on = re.search(r"^LOOK ON  (.+)$", night.out, re.MULTILINE)[1]
    assert "replay-1" in subprocess.run(look_on, shell=True, capture_output=True, text=True, check=True).stdout
    stage = stage_in(night.home)
    assert stage.instance.ledger().serving["default"].follow == "replay-1"
    for branch in ("main", "replay-1"):
        assert prove_branch(stage, branch)["findings"] == 0


@pytest.mark.slow
def test_the_replay_left_out_exactly_what_the_producer_asked_and_labelled(night) -> None:
    """300 answers and 300 labels carry its header; what the new branch has learned is every other label in the log."""
    instance = stage_in(night.home).instance
    told = producers_of_labels(instance)
    assert told.count(PRODUCER) == POISON_ROWS and set(told) == {HONEST, PRODUCER}
    counts = load_part(instance.store(), Archive(instance).marks("replay-1")[-1], "counts")["counts"]
    assert (counts["learned"], counts["rejected"]) == (len(told) - POISON_ROWS, 0)
    waiting = newest_output(stage_in(night.home), "replay-1").labels["awaited"]  # given before the version, for another label
    assert counts["passed"] + waiting == POISON_ROWS * 2
    repaired = learned_by(instance, "replay-1")
    assert difference(learned_without(instance, PRODUCER), repaired) <= 1e-8
    assert difference(learned_without(instance, "nobody"), repaired) > 1e-8, "the twin that leaves nothing out"


@pytest.mark.slow
def test_the_nights_picture_shades_the_poisoned_stretch_between_both_curves(night) -> None:
    """Pink lies behind it, the curve as served is blue and the repaired one green."""
    from matplotlib.image import imread

    pixels = (imread(night.home / NAME / "night.png")[:, :, :3] * 255).round().astype(int)
    pink, blue, green = (np.abs(pixels - colour).max(axis=2) < 8 for colour in ((248, 227, 229), (31, 95, 191), (42, 143, 79)))
    assert pink.sum() > 50_000 and blue.sum() > 2000 < green.sum()
    plot = night.out[night.out.rindex("┌") : night.out.rindex("PICTURE")]
    assert all(mark in plot for mark in ("*", "+", "┊", "║")) and max(map(len, plot.splitlines())) <= 120


def prove_branch(stage, branch) -> dict:
    """What `millrace verify --branch` says."""
    (verdict,) = lines_of(stage, "verify", ["--branch", branch])
    return verdict


def test_a_folder_that_is_not_a_storys_is_left_alone(tmp_path) -> None:
    """State that somebody else keeps under the story's name is not removed."""
    kept = tmp_path / NAME / "log.sqlite"
    kept.parent.mkdir()
    kept.write_bytes(b"precious")
    with pytest.raises(MillraceError, match="was not made by `make run`"):
        prepare(DemoPlan("digits", 0, 1.0, 0, tmp_path))
    assert kept.read_bytes() == b"precious"


def test_a_second_preparation_replaces_the_first(tmp_path) -> None:
    """A fresh story removes what the last one left, and nothing beside it."""
    beside = tmp_path / "mine" / "log.sqlite"
    beside.parent.mkdir()
    beside.touch()
    prepare(DemoPlan("digits", 100, 1.0, 0, tmp_path)).backends.producer.append(NAME, [])
    (tmp_path / NAME / "left.over").touch()
    stage = prepare(DemoPlan("digits", 0, 1.0, 0, tmp_path))
    assert (stage.rows, stage.left) == (1442, 0)
    assert not (tmp_path / NAME / "left.over").exists()
    assert beside.exists()
