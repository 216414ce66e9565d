"""`millrace run` learns a draft from what a real target answered; what is made for rows says that it is not for these."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_draft
from answered import K, answered, batch_of, model, pair_folder
from draft_pipelines import equal, loaded, put, tiny, tiny_values, weights
from pipelines import MILLRACE, TIMEOUT_S, clean_environment
from safetensors.numpy import load_file
from served_pipeline import until

from millrace.learners.draft.completion import unpack
from millrace.learners.draft.servable import DraftServable
from millrace.learners.errors import BadInputError, MillraceError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.expiry import expire
from millrace.services.pipeline.instance import Instance
from millrace.services.proof.certify import prove_branch
from millrace.services.registry.export import export
from millrace.services.training import run as run_of_training
from millrace.services.training.run import Bounds, run
from millrace.streams.records import Record
from millrace.streams.sqlite.log import SqliteLog

FOLLOWING = [*MILLRACE, "run", "answers.toml", "--home", "home", "--follow"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are remembered in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tau(draft: DraftServable, values: tuple[bytes, ...]) -> float:
    """Tokens a step on completions."""
    replayed = draft.replayed(batch_of(values))
    return 1.0 + sum(each.accepted for each in replayed) / sum(len(each.steps) for each in replayed)


@pytest.mark.slow
def test_a_shift_to_sql_is_learned_and_chat_is_kept(tmp_path: Path) -> None:
    """Chat, then SQL that the draft never saw: tau on unseen SQL rises from about 1 to over 1.5, on unseen chat it keeps 0.8.

    What is exported is loaded by transformers itself, and gives the logits that the version replays with.
    """
    instance = Instance(loaded(tmp_path, pair_folder("target"), pair_folder("draft_chat")), tmp_path / "home" / "answers")
    chat, sql = answered("chat", 24), answered("sql", 66)
    put(instance, [*chat[:12], *sql[:56]])
    done = run(instance, "main", Bounds(), take_over=False)
    assert (done.read, done.learned, done.rejected) == (68, 68, 0)
    parts = Archive(instance).parts(Archive(instance).mark(str(done.version)))
    served = DraftServable.from_arrays(parts.serve)
    before = DraftServable(served.config, first_weights(), K, served.target)
    assert tau(before, sql[56:]) < 1.15 and tau(served, sql[56:]) > 1.5
    assert tau(served, chat[12:]) > 0.8 * tau(before, chat[12:])
    exported = exported_logits(instance, str(done.version), tmp_path / "exported")
    assert np.allclose(exported(chat[0]), replayed_logits(served, chat[0]), rtol=0.0, atol=1e-5)


def first_weights() -> dict[str, np.ndarray]:
    """Of the chat draft."""
    return {name: weight.detach().numpy() for name, weight in model("draft_chat").network.named_parameters()}


def tokens_of(value: bytes) -> list[int]:
    """Prompt and answer."""
    completion = unpack(value)
    return [*completion.prompt.tolist(), *completion.output.tolist()]


def exported_logits(instance: Instance, version: str, folder: Path):
    """What transformers makes of an exported version."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    manifest = export(instance, version, folder)
    assert manifest.identity.version == version
    assert AutoTokenizer.from_pretrained(folder)("SELECT")["input_ids"] == model("target").tokenizer("SELECT")["input_ids"]
    network = AutoModelForCausalLM.from_pretrained(folder).eval()

    def logits(value: bytes) -> np.ndarray:
        with torch.no_grad():
            return network(torch.tensor([tokens_of(value)])).logits[0].numpy()

    return logits


def replayed_logits(served: DraftServable, value: bytes) -> np.ndarray:
    """The same by the weights of the version, in the class of the draft it began with."""
    from copy import deepcopy

    import torch

    network = deepcopy(model("draft_chat").network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.tensor(served.weights[name]))
        return network(torch.tensor([tokens_of(value)])).logits[0].numpy()


def test_a_run_learns_counts_and_is_proved(tmp_path: Path) -> None:
    """Flagged ones and those of another target are passed and named, what is broken is a dead letter; verify proves it all."""
    instance = tiny(tmp_path)
    put(
        instance,
        [*tiny_values(40, domain="sql"), *tiny_values(3, 1, flags=("grammar",)), b"junk", *tiny_values(2, 2, target=bytes(32))],
    )
    done = run(instance, "main", Bounds(), take_over=False)
    assert (done.read, done.learned, done.passed, done.rejected) == (46, 40, 5, 1)
    assert instance.log().topic("answers.completions") is not None and instance.log().topic("answers") is None
    from millrace.services.decisions.status import status

    facts = status(instance, "main")
    assert (facts["learned"], facts["passed"], facts["flagged"], facts["other_target"]) == (40, 5, 3, 2)
    assert 0.0 < facts["alpha_sql"] < 1.0 and 0.0 < facts["served_alpha_sql"] < 1.0
    assert all(report.proved and not report.findings for report in prove_branch(instance, "main"))


def appended_long_ago(instance: Instance, topic: str, values: list[bytes]) -> None:
    """Records of a month ago, in the log of a pipeline."""
    log = SqliteLog(instance.folder / "log.sqlite", lambda: time.time_ns() // 1_000_000 - 30 * 86_400_000)
    log.append(topic, [Record(value, b"a", b"", 1_000) for value in values])
    log.close()


def test_a_run_that_follows_lets_old_completions_go_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may never end; what was learned before its newest checkpoint goes, and the draft is as good."""
    monkeypatch.setattr(run_of_training, "EXPIRY_S", 0.0)
    instance = tiny(tmp_path)
    assert instance.log().bounds("answers.completions:0") == (0, 0)
    appended_long_ago(instance, "answers.completions", tiny_values(48))
    done = run(instance, "main", Bounds(follow=True, rows=48), take_over=False)
    assert done.learned == 48 and instance.log().bounds("answers.completions:0") == (32, 48)


def test_dead_letters_of_completions_go_as_completions_do(tmp_path: Path) -> None:
    """A refused one lies there whole, with all its text; one of today stays."""
    instance = tiny(tmp_path)
    assert instance.log().bounds("answers.dead-letters:0") == (0, 0)
    appended_long_ago(instance, "answers.dead-letters", [b"text of a caller"] * 3)
    instance.log().append("answers.dead-letters", [Record(b"today")])
    expire(instance)
    assert instance.log().bounds("answers.dead-letters:0") == (3, 4)


def test_any_cut_gives_the_same_draft(tmp_path: Path) -> None:
    """Learned in one run, or in five with a restart between each: the same weights, bit for bit."""
    values, drafts = tiny_values(60), []
    for name, cuts in (("whole", [60]), ("cut", [7, 23, 31, 48, 60])):
        (tmp_path / name).mkdir()
        instance, start = tiny(tmp_path / name), 0
        for stop in cuts:
            put(instance, values[start:stop])
            start = stop
            run(instance, "main", Bounds(), take_over=False)
        drafts.append(weights(instance))
    assert equal(*drafts) and not equal(drafts[0], {name: value * 2 for name, value in drafts[0].items()})


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_draft(tmp_path: Path) -> None:
    """kill -9 while it learns, behind a checkpoint or two; then the same draft as by a run that nobody killed.

    It follows the log, so it is alive whenever that comes, and half of what it is to learn comes after its first mark.
    """
    values = tiny_values(250)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        put(tiny(tmp_path / name), values[:125])
    put(tiny(tmp_path / "whole"), values[125:])
    run(tiny(tmp_path / "whole"), "main", Bounds(), take_over=False)
    killed = tiny(tmp_path / "killed")
    process = subprocess.Popen(FOLLOWING, cwd=tmp_path / "killed", env=clean_environment(), stderr=subprocess.DEVNULL)
    learned_behind_marks(killed, process, 1)
    marks = marks_of(killed)
    put(killed, values[125:])
    learned_behind_marks(killed, process, marks + 1)
    process.send_signal(signal.SIGKILL)
    assert process.wait(TIMEOUT_S) == -signal.SIGKILL
    run(killed, "main", Bounds(), take_over=False)
    assert equal(weights(killed), weights(tiny(tmp_path / "whole")))
    assert all(report.proved and not report.findings for report in prove_branch(killed, "main"))


@pytest.mark.slow
def test_killed_at_points_of_a_seed_it_goes_on_to_the_same_draft(tmp_path: Path) -> None:
    """kill -9 as soon as it has read to each of three offsets, with more to read behind each; then the same draft, proved."""
    values, points = tiny_values(250), sorted(np.random.default_rng(17).integers(20, 200, 3).tolist())
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    put(tiny(tmp_path / "whole"), values)
    run(tiny(tmp_path / "whole"), "main", Bounds(), take_over=False)
    killed, start = tiny(tmp_path / "killed"), 0
    for point in points:
        put(killed, values[start : point + 50])
        start = max(start, point + 50)
        process = subprocess.Popen(FOLLOWING, cwd=tmp_path / "killed", env=clean_environment(), stderr=subprocess.DEVNULL)
        until(lambda point=point, process=process: read_to(killed) >= point or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        assert process.wait(TIMEOUT_S) == -signal.SIGKILL
    put(killed, values[start:])
    run(killed, "main", Bounds(), take_over=False)
    assert equal(weights(killed), weights(tiny(tmp_path / "whole")))
    assert all(report.proved and not report.findings for report in prove_branch(killed, "main"))


def read_to(instance: Instance) -> int:
    """The offset to which the branch has read by now."""
    if not instance.has_branch("main"):
        return 0
    return max(Archive(instance).so_far("main").position.values(), default=0)


def learned_behind_marks(instance: Instance, process: subprocess.Popen[bytes], marks: int) -> None:
    """Wait until the branch has so many marks; a process that ends by itself is an error."""
    until(lambda: marks_of(instance) >= marks or process.poll() is not None)
    assert marks_of(instance) >= marks


def marks_of(instance: Instance) -> int:
    """How many marks the branch has by now."""
    if not instance.has_branch("main"):
        return 0
    return len(Archive(instance).so_far("main").marks)


def test_a_replay_without_a_tenant_is_a_draft_that_never_saw_it(tmp_path: Path) -> None:
    """By the key of its records: equal weights to a pipeline into which that tenant's completions never came."""
    from click.testing import CliRunner

    from millrace.services.cli import main

    own, others = tiny_values(20, 1), tiny_values(30, 2)
    for name in ("both", "one"):
        (tmp_path / name).mkdir()
    both, one = tiny(tmp_path / "both"), tiny(tmp_path / "one")
    for at in range(10):
        put(both, own[2 * at : 2 * at + 2], b"tenant a")
        for instance in (both, one):
            put(instance, others[3 * at : 3 * at + 3], b"tenant b")
    for instance in (both, one):
        run(instance, "main", Bounds(), take_over=False)
    assert not equal(weights(both), weights(one))
    place = [str(tmp_path / "both" / "answers.toml"), "--home", str(tmp_path / "both" / "home"), "--output", "json"]
    exclusion = ["--from-start", "--exclude-key", "tenant a", "--reason", "they left"]
    planned = CliRunner().invoke(main, ["replay", "plan", *place, *exclusion])
    assert planned.exit_code == 0, planned.output
    name = json.loads(planned.stdout.splitlines()[0])["value"]
    replayed = CliRunner().invoke(main, ["replay", "run", place[0], name, *place[1:]])
    assert replayed.exit_code == 0, replayed.output
    assert equal(weights(both, "replay-1"), weights(one))


def test_an_export_has_the_tokenizer_and_no_word_on_other_weights(tmp_path: Path) -> None:
    """The folder may have several files, or an adapter beside them: the version is one file, and transformers loads it."""
    draft = tmp_path / "draft"
    shutil.copytree(tiny_draft.folder(), draft)
    (draft / "model.safetensors").rename(draft / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(load_file(draft / "model-00001-of-00001.safetensors"), "model-00001-of-00001.safetensors")
    (draft / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (draft / "tokenizer_config.json").write_text("{}")
    (draft / "adapter_config.json").write_text("{}")
    read = loaded(tmp_path, tiny_draft.folder(), draft, k=tiny_draft.K, top=tiny_draft.TOP)
    instance = Instance(read, tmp_path / "home" / "answers")
    put(instance, tiny_values(16))
    done = run(instance, "main", Bounds(), take_over=False)
    export(instance, str(done.version), tmp_path / "exported")
    written = {file.name for file in (tmp_path / "exported").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer_config.json", "manifest.json", "journal.jsonl"} <= written
    assert not {name for name in written if "index" in name or "adapter" in name}
    assert str(tmp_path) not in (tmp_path / "exported" / "config.json").read_text()
    from transformers import AutoModelForCausalLM

    network, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not any(loading.values())
    own = weights(instance)
    assert all(np.array_equal(own[f"weight.{name}"], value.detach().numpy()) for name, value in network.named_parameters())


def test_what_answers_rows_says_that_this_is_none(tmp_path: Path) -> None:
    """Serving, sending, predicting, a back-fill, MLflow and the comparison of answers, each in one sentence."""
    from millrace.services.api import Pipeline
    from millrace.services.data.send import send
    from millrace.services.registry.mirroring import mirror
    from millrace.services.replay.backfill import warm_start
    from millrace.services.replay.diff import compare
    from millrace.services.serving.events import EventLines
    from millrace.services.serving.up import Listening, up

    instance = tiny(tmp_path, '[mlflow]\nuri = "http://127.0.0.1:9"\n')
    put(instance, tiny_values(16))
    run(instance, "main", Bounds(), take_over=False)
    (tmp_path / "rows.jsonl").write_text('{"x": 1}\n')
    pipeline = Pipeline.load(tmp_path / "answers.toml", home=tmp_path / "home")
    with pytest.raises(MillraceError, match="has a language model to answer"):
        up(instance, "main", Listening(), EventLines("text", "up"))
    for call in (
        lambda: send(instance, [b"{}"], 0.0),
        lambda: pipeline.append([{"x": 1}]),
        lambda: warm_start(instance, "other", tmp_path / "rows.jsonl"),
        lambda: mirror(instance, once=True),
        lambda: compare(instance, 10),
    ):
        with pytest.raises(BadInputError, match="is for pipelines of rows"):
            call()
    with pytest.raises(BadInputError, match="is a draft and answers no rows"):
        pipeline.predict([{"x": 1}], "newest")
