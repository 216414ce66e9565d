"""The public Python surface: it does what the commands do, in a program, and says what was asked wrongly."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from pipelines import PIPELINE, TIMEOUT_S, clean_environment, flower_rows, here, json_lines, pipeline_in

from millrace.services import pyfunc
from millrace.services.api import (
    BadInputError,
    BusyError,
    ConfigError,
    Field,
    Label,
    LateLabel,
    MillraceError,
    NotProvedError,
    NotReadyError,
    Pipeline,
)
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.py"
VERSIONED = PIPELINE.replace("gamma = 0.5", "gamma = 0.5, solve_rows = 20") + "step_rows = 50\nversion_rows = 100\n"
ROW = {"x": [1.0, 2.0, 3.0, 4.0], "site": "north", "label": "rose"}


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pipeline is set from outside."""
    for name in [name for name in os.environ if name.startswith("MILLRACE_")]:
        monkeypatch.delenv(name)


def flowers(folder: Path, text: str = PIPELINE) -> Pipeline:
    """The pipeline of the file ``digits.toml``, in a folder where the commands find it."""
    return Pipeline.load(pipeline_in(folder, text=text), home=folder / ".millrace")


def rows_of(count: int) -> list[dict]:
    """Good rows of ``PIPELINE`` as a program has them."""
    return [json.loads(line) for line in flower_rows(count)]


def table(folder: Path, *words: str) -> list[dict]:
    """The rows that a command prints."""
    done = here(*words, "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return json_lines(done.stdout)


# --- the same as the commands


def test_it_learns_and_answers_what_the_commands_do(tmp_path: Path) -> None:
    """The same rows by Python and by `send` and `run` give the same state, version, scores and facts."""
    for name in ("by_python", "by_command"):
        (tmp_path / name).mkdir()
    ours = flowers(tmp_path / "by_python", VERSIONED)
    assert ours.append(rows_of(200)) == 200
    done = ours.learn()
    pipeline_in(tmp_path / "by_command", text=VERSIONED)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path / "by_command").exit_code == 0
    theirs = Pipeline.load(tmp_path / "by_command/digits.toml", home=tmp_path / "by_command/.millrace")
    assert done.read == ours.status().learned == 200
    assert ours.scores() == theirs.scores() and ours.scores().rows == 200
    questions = [{key: value for key, value in row.items() if key != "label"} for row in rows_of(20)]
    assert ours.predict(questions).labels == theirs.predict(questions).labels
    assert np.array_equal(ours.predict(questions).scores, theirs.predict(questions).scores)
    assert ours.verify()[0].state_seq and table(tmp_path / "by_python", "verify", "digits.toml")[0]["unproved"] == 0


def test_status_versions_and_scores_are_what_the_commands_print(tmp_path: Path) -> None:
    """Each fact of `millrace status` and each row of `millrace versions` stands in the records."""
    pipeline = flowers(tmp_path, VERSIONED)
    pipeline.append(rows_of(300))
    pipeline.learn()
    pipeline.promote("newest", "best so far")
    facts = {line["what"]: line["value"] for line in table(tmp_path, "status", "digits.toml")}
    status = pipeline.status()
    assert json.loads(json.dumps(status.facts)) == facts
    assert (status.version, status.learned, status.records, status.lag_rows) == (facts["version"], 300, 300, 0)
    printed = table(tmp_path, "versions", "digits.toml")
    assert [version.version for version in pipeline.versions()] == [line["version"] for line in printed]
    assert [version.bytes for version in pipeline.versions()] == [line["bytes"] for line in printed]
    assert pipeline.versions()[-1].aliases == ("champion",) and pipeline.versions()[0].aliases == ()
    assert pipeline.scores().accuracy == facts["accuracy"]
    assert {f"recall_{name}": share for name, share in pipeline.scores().recall.items()}.items() <= facts.items()


def test_a_rollback_writes_the_entry_that_the_command_writes(tmp_path: Path) -> None:
    """Beside its time, for what is served already and for a version; what is served changes, and ``serve`` goes forward."""
    pipeline = flowers(tmp_path, VERSIONED)
    pipeline.append(rows_of(300))
    pipeline.learn()
    assert pipeline.roll_back("keep it").after == f"version {pipeline.status().version}"  # the newest of what was followed
    assert pipeline.serve("go on", follow="main").after == "the newest of main"
    decided = pipeline.roll_back("garbage since 02:10", pipeline.versions()[0].version)
    first = json_lines(here("log", "digits.toml", "--ledger", "--output", "json", cwd=tmp_path).stdout)[-1]
    assert decided.after == f"version {first['to']['version']}" and decided.before == "the newest of main"
    assert pipeline.predict(rows_of(3)).version == first["to"]["version"] != pipeline.status().version
    undone = pipeline.serve("mended", follow="main")
    assert (undone.before, undone.after) == (decided.after, "the newest of main")
    assert pipeline.predict(rows_of(3)).version == pipeline.status().version
    words = ["rollback", "digits.toml", str(first["to"]["version"]), "--reason", "garbage since 02:10", "--yes"]
    assert here(*words, cwd=tmp_path).exit_code == 0
    second = json_lines(here("log", "digits.toml", "--ledger", "--output", "json", cwd=tmp_path).stdout)[-1]
    assert first.pop("when_ms") <= second.pop("when_ms") and first == second


def test_predict_asks_what_is_served_a_version_an_alias_or_the_newest(tmp_path: Path) -> None:
    """The answers say which state it was, and are those of that state."""
    pipeline = flowers(tmp_path, VERSIONED)
    pipeline.append(rows_of(300))
    pipeline.learn()
    first, *_, last = pipeline.versions()
    pipeline.promote(first.version, "audit", alias="pinned")
    asked = rows_of(10)
    old, new = pipeline.predict(asked, first.version), pipeline.predict(asked)
    assert (old.version, old.seq, old.branch) == (first.version, first.seq, "main") and new.version == last.version
    assert pipeline.predict(asked, "pinned").version == first.version
    assert pipeline.predict(asked, "newest").version == last.version
    assert not np.array_equal(old.scores, new.scores) and np.array_equal(pipeline.predict(asked, "pinned").scores, old.scores)
    assert new.scores.shape == (10, len(new.classes)) and set(new.labels) <= set(new.classes)
    pipeline.serve("audit", first.version)
    assert pipeline.predict(asked).version == first.version and pipeline.predict(asked, "newest").version == last.version
    assert pipeline.predict([]).labels == () and pipeline.status().records == 300


def test_predict_answers_as_a_replica_does_bit_for_bit(tmp_path: Path) -> None:
    """What an exported version says of the same rows, which is read as requests are."""
    pipeline = flowers(tmp_path, VERSIONED)
    pipeline.append(rows_of(100))
    version = pipeline.learn().version
    assert here("export", "digits.toml", str(version), "exported", cwd=tmp_path).exit_code == 0
    columns = {name: [row[name] for row in rows_of(40)] for name in ("x", "site")}
    served = pyfunc._load_pyfunc(str(tmp_path / "exported")).predict(columns)
    answers = pipeline.predict(rows_of(40), version)
    assert np.array_equal(served["scores"], answers.scores) and served["label"].tolist() == list(answers.labels)


def test_numbers_are_predicted_and_scored_by_their_errors(tmp_path: Path) -> None:
    """A label of type number: one column of scores, no classes, no accuracy."""
    settings = {"batch.rows": 1, "learner.solve_rows": 10}
    pipeline = Pipeline.build("line", [Field("x")], Label("y", "number"), "ridge", settings=settings, home=tmp_path)
    pipeline.append([{"x": at % 7, "y": 2.0 * (at % 7)} for at in range(70)])
    pipeline.learn()
    answers = pipeline.predict([{"x": 3}, {"x": 5, "y": "not known"}])
    assert answers.scores.shape == (2, 1) and (answers.labels, answers.classes) == ((), ())
    assert np.allclose(answers.scores[:, 0], [6, 10], atol=0.5)
    scores = pipeline.scores()
    assert scores.accuracy is None and scores.values["absolute_error"] < scores.values["absolute_error_mean"]
    with pytest.raises(BadInputError, match="column y: Expected `float"):
        pipeline.append([{"x": 3, "y": "six"}])


def test_late_labels_meet_the_answers_that_predict_gave(tmp_path: Path) -> None:
    """``Answers.served`` makes the records that labels follow; the same label twice is learned once."""
    text = PIPELINE + "[labels]\nhorizon_ms = 3600000\n"
    pipeline = flowers(tmp_path, text)
    pipeline.append(rows_of(40))
    pipeline.learn()
    rows = rows_of(60)[40:]
    ids = [f"question {at}" for at in range(20)]
    answers = pipeline.predict(rows)
    labels = [LateLabel(name, row["label"]) for name, row in zip(ids, rows, strict=True)]
    assert pipeline.append_served([*answers.served(ids), *labels, labels[0]], headers={"producer": "test"}) == 41
    pipeline.learn()
    status = pipeline.status()
    assert (status.learned, status.rejected, status.facts["labels_repeated"]) == (60, 0, 1)
    right = sum(label == row["label"] for label, row in zip(answers.labels, rows, strict=True))
    assert pipeline.scores().values["served_accuracy"] == right / 20
    with pytest.raises(BadInputError, match="there are 1 for 20 rows"):
        answers.served(["one"])


def test_a_built_pipeline_is_the_one_of_the_file_that_it_saves(tmp_path: Path) -> None:
    """Settings, fields and all: the same state, to go on with by commands; a file is not written over."""
    site = Field("site", type="categorical", categories=("north", "south"))
    settings = {"seed": 7, "learner.gamma": 0.5, "batch.rows": 20, "log.topic": 'a "b"', "log.kafka.bootstrap": "h:1"}
    built = Pipeline.build("digits", [Field("x", size=4), site], Label("label"), "ridge", settings=settings, home=tmp_path)
    built.append(rows_of(50))
    built.learn()
    file = built.save(tmp_path / "digits.toml")
    loaded = load_pipeline(file)
    assert loaded.pipeline == built._instance.loaded.pipeline and loaded.pipeline.learner["gamma"] == 0.5
    again = Pipeline.load(file, home=tmp_path)
    assert again.learn().read == 0 and again.status().learned == 50 and again.folder == built.folder
    assert here("verify", file, "--home", tmp_path, cwd=tmp_path).exit_code == 0
    with pytest.raises(BadInputError, match="cannot be written: File exists"):
        built.save(file)


def test_settings_come_before_the_environment_and_that_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As flags do on the command line; for a pipeline that is built as well."""
    path = pipeline_in(tmp_path)
    monkeypatch.setenv("MILLRACE__LEARNER__GAMMA", "3")
    monkeypatch.setenv("MILLRACE__BATCH__ROWS", "11")
    for made in (
        Pipeline.load(path, home=tmp_path, settings={"learner.gamma": 4.0}),
        Pipeline.build("digits", [Field("x")], Label("label"), "ridge", settings={"learner.gamma": 4.0}, home=tmp_path),
    ):
        pipeline = made._instance.loaded.pipeline
        assert (pipeline.learner["gamma"], pipeline.batch.rows) == (4.0, 11)
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "elsewhere"))
    assert Pipeline.load(path).folder == tmp_path / "elsewhere" / "digits"


def test_several_shards_are_learned_and_answer_as_one(tmp_path: Path) -> None:
    """As `millrace run` does: every shard, then their merge."""
    text = PIPELINE.replace("seed = 7", "seed = 7\nshards = 2") + "[log]\npartitions = 2\n"
    pipeline = flowers(tmp_path, text)
    pipeline.append(rows_of(120))
    assert pipeline.learn().read == 120 and pipeline.status().facts["learned"] == 120
    answers = pipeline.predict(rows_of(5))
    merged = [version.version for version in pipeline.versions() if version.branch == "main"]
    assert answers.branch == "main" and answers.version == merged[-1]
    assert {name for proof in pipeline.verify() for name in proof.proved} >= {answers.version}
    with pytest.raises(BadInputError, match="Branch main.shard|is a shard"):
        pipeline.serve("try", follow=pipeline._instance.shards("main")[0])


# --- what is asked wrongly


def test_a_wrong_question_says_what_to_do(tmp_path: Path) -> None:
    """Before anything was learned, for a version or branch that is not there, and without a reason."""
    pipeline = flowers(tmp_path)
    for ask in (lambda: pipeline.predict([ROW]), lambda: pipeline.predict([ROW], None)):
        with pytest.raises(NotReadyError, match="has learned nothing yet. Call append and learn"):
            ask()
    assert pipeline.versions() == []
    for ask in (pipeline.status, pipeline.scores, pipeline.verify):
        with pytest.raises(MillraceError, match="has no branch main"):
            ask()
    pipeline.append([ROW] * 20)
    pipeline.learn()
    with pytest.raises(MillraceError, match="no version main.999"):
        pipeline.predict([ROW], "main.999")
    with pytest.raises(MillraceError, match="There is no version or alias 'champion'"):
        pipeline.roll_back("why", "champion")
    with pytest.raises(MillraceError, match="has no version before"):
        pipeline.serve("pin", "newest") and pipeline.roll_back("why")
    for decide in (
        lambda: pipeline.roll_back(" "),
        lambda: pipeline.serve("", "newest"),
        lambda: pipeline.promote("newest", ""),
    ):
        with pytest.raises(BadInputError, match="say why in a few words"):
            decide()
    with pytest.raises(BadInputError, match="Name a VERSION, or a branch"):
        pipeline.serve("why")
    with pytest.raises(BadInputError, match="no table \\[labels\\]"):
        pipeline.append_served([LateLabel("mail 1", "rose")])
    with pytest.raises(BadInputError, match="must be at least"):
        pipeline.learn(-1)
    with pytest.raises(BadInputError, match="must be at least 1"):
        pipeline.append([ROW], rows_per_message=0)


def test_a_wrong_pipeline_names_key_and_value(tmp_path: Path) -> None:
    """A file that is not there, keys and values that are none, a branch that names no file."""
    path, fields, label = pipeline_in(tmp_path), [Field("x")], Label("y")
    with pytest.raises(ConfigError, match="There is no pipeline file"):
        Pipeline.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="learner.gama = 2: there is no such key. Did you mean gamma"):
        Pipeline.load(path, settings={"learner.gama": 2})
    with pytest.raises(ConfigError, match="pipeline p: learner.kind = 'rigde' is not a learner. Did you mean ridge"):
        Pipeline.build("p", fields, label, "rigde")
    with pytest.raises(ConfigError, match="name = 'a/b'|must be letters, digits"):
        Pipeline.build("a/b", fields, label, "ridge")
    with pytest.raises(ConfigError, match="settings: batch.rows = None: NoneType has no place in a pipeline file"):
        Pipeline.build("p", fields, label, "ridge", settings={"batch.rows": None})
    with pytest.raises(ConfigError, match="batch.rows = 0|rows = 0: must be at least 1"):
        Pipeline.build("p", fields, label, "ridge", settings={"batch.rows": 0})
    with pytest.raises(BadInputError, match=r"branch = '\.\./x': must be letters"):
        Pipeline.load(path, branch="../x")


def test_a_branch_that_a_live_process_has_is_busy(tmp_path: Path) -> None:
    """And what was appended meanwhile is learned afterwards."""
    pipeline = flowers(tmp_path)
    pipeline.append([ROW] * 20)
    held = Instance(pipeline._instance.loaded, pipeline.folder).hold("main", take_over=False)
    with held, pytest.raises(BusyError, match="being written by process"):
        pipeline.learn()
    assert pipeline.learn().read == 20


def test_damage_is_found(tmp_path: Path) -> None:
    """A flipped byte in every stored part: verify names it, and a damaged version does not answer."""
    pipeline = flowers(tmp_path)
    pipeline.append(rows_of(40))
    version = pipeline.learn().version
    for part in (pipeline.folder / "store").rglob("*"):
        if part.is_file():
            part.write_bytes(b"damaged" + part.read_bytes())
    with pytest.raises(NotProvedError, match="is not what was stored"):
        pipeline.verify()
    with pytest.raises(MillraceError, match="is not what was stored"):
        pipeline.predict([ROW], version)
    assert pipeline.versions()[-1].bytes is None


# --- in a program


def test_learning_gives_signals_back_and_runs_beside_the_main_thread(tmp_path: Path) -> None:
    """A notebook's Ctrl-C means what it did before; a thread, which Python lets hear no signals, learns all the same."""
    pipeline = flowers(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    pipeline.append([ROW] * 20)
    pipeline.learn()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    pipeline.append([ROW] * 20)
    done = []
    thread = threading.Thread(target=lambda: done.append(pipeline.learn()))
    thread.start()
    thread.join()
    assert done[0].read == 20 and pipeline.status().learned == 40


def test_importing_it_loads_nothing_heavy() -> None:
    """What takes seconds, or may be missing, waits until it is needed."""
    heavy = "{'torch', 'ray', 'mlflow', 'pandas', 'pyarrow', 'sklearn', 'river', 'polars'}"
    program = f"import sys, millrace.services.api\nprint({heavy} & {{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def imports_of(source: str) -> set[str]:
    """Every module of ours that a program imports."""
    nodes = list(ast.walk(ast.parse(source)))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in imported if name.split(".")[0] == "millrace"}


def late_label_blocks() -> list[str]:
    """The Python blocks of the README and the documents that use late labels."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)]
    return [block for block in blocks if "LateLabel" in block]


def test_the_notebook_and_the_late_label_example_use_the_public_names_alone() -> None:
    """Nothing else of ours is imported."""
    examples = [NOTEBOOK.read_text(encoding="utf-8"), *late_label_blocks()]
    assert len(examples) >= 2
    assert [imports_of(example) for example in examples] == [{"millrace.services.api"}] * len(examples)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """It learns digits, is poisoned, rolls back to the version that had answered, and proves every version."""
    pytest.importorskip("sklearn", reason="scikit-learn, which brings the digits, is not installed")
    command = [sys.executable, str(NOTEBOOK)]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"accuracy ([\d.]+)", done.stdout)[1]) > 0.8
    assert int(re.search(r"(\d+) of 797 right", done.stdout)[1]) > 700
    poisoned, again = (re.search(rf"^{words}.*\((.*)\)$", done.stdout, re.M)[1] for words in ("of main", "served again"))
    assert poisoned.count("'7'") > 5 > again.count("'7'")
    assert re.search(r"Decided\(before='the newest of main', after='version main\.\d+', reason='400 rows", done.stdout)
    assert re.search(r"^proved \[\(.*\)\] at 0 rows behind$", done.stdout, re.M)
