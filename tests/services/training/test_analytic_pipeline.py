"""The analytic family in a pipeline: one word chooses the learner, and crash, refold and proof hold for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from branches import SCHEMA, SMALL, Rooms, everything, fold_spec, make_events, run_to_end
from pipelines import PIPELINE, facts, flower_rows, millrace, pipeline_in

from millrace.learners.errors import ConfigError
from millrace.learners.table import LEARNERS
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import FoldSpec
from millrace.streams.branch.verify import verify
from millrace.streams.records import Record

PRIORS: list[tuple[str, Any]] = [("uniform", "uniform"), ("as-seen", "as-seen"), ("table", {"7": 0.5})]


@pytest.mark.parametrize("kind", ["aef-ocl", "air", "slda", "ncm"])
def test_one_word_chooses_the_learner(tmp_path: Path, kind: str) -> None:
    """And the keys are that learner's own, with their defaults."""
    loaded = load_pipeline(pipeline_in(tmp_path, rows=0, text=PIPELINE), [f'learner={{kind="{kind}"}}'])
    assert loaded.learner == LEARNERS[kind].config()


@pytest.mark.parametrize(("_name", "prior"), PRIORS)
def test_a_prior_is_a_word_or_a_table(tmp_path: Path, _name: str, prior: Any) -> None:
    """As TOML says it."""
    written = f'"{prior}"' if isinstance(prior, str) else '{ "7" = 0.5 }'
    loaded = load_pipeline(pipeline_in(tmp_path, rows=0, text=PIPELINE), [f'learner={{kind="air", prior={written}}}'])
    assert loaded.learner.prior == prior and loaded.pipeline.learner["prior"] == prior


@pytest.mark.parametrize(
    ("learner", "sentence"),
    [
        ('{kind="aier"}', "is not a learner"),
        ('{kind="air", prior="even"}', "prior = 'even': must be"),
        ('{kind="ridge", prior="uniform"}', "prior"),
        ('{kind="ncm", gamma=1.0}', "gamma"),
    ],
)
def test_what_a_learner_cannot_be_told_is_named(tmp_path: Path, learner: str, sentence: str) -> None:
    """With the file."""
    with pytest.raises(ConfigError, match=sentence):
        load_pipeline(pipeline_in(tmp_path, rows=0, text=PIPELINE), [f"learner={learner}"])


def test_air_without_room_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    """By the operator's sentence and not a traceback: the bytes, the limit and the way out."""
    loaded = load_pipeline(pipeline_in(tmp_path, rows=0, text=PIPELINE), ['learner={kind="air", expand=8192}'])
    with pytest.raises(ConfigError, match=r"25603 MiB.*limit_mib = 1024; use fewer, or kind aef-ocl"):
        Instance(loaded, tmp_path).fold_spec.make_learner()


def learning(kind: str, **config: Any) -> FoldSpec:
    """The small pipeline with another learner."""
    algorithm = LEARNERS[kind]
    told = algorithm.config(solve_rows=9, **config)
    return replace(fold_spec(), make_learner=lambda: algorithm.learner(told, SCHEMA.width, 0))


@pytest.mark.parametrize(
    "how",
    [
        learning("aef-ocl"),
        learning("aef-ocl", solve_behind=True),
        learning("air", prior={"d": 0.5}),
        learning("air", solve_behind=True),
        learning("slda"),
        learning("ncm", expand=20),
    ],
    ids=["aef-ocl", "aef-ocl, solved behind", "air", "air, solved behind", "slda", "ncm"],
)
def test_a_restart_in_the_middle_and_a_refold_give_the_same_bits(how: FoldSpec) -> None:
    """All parts, derived ones too: the balanced answers follow from the state alone; every mark is proved."""
    events = make_events(150)
    whole = Rooms(events)
    steady = whole.worker(how=how)
    run_to_end(steady, 150)
    halved = Rooms(events)
    run_to_end(halved.worker(config=SMALL, how=how), 70)
    again = halved.worker(how=how)
    run_to_end(again, 150)
    assert everything(again) == everything(steady)
    report = verify(how, whole.backends(), "main", SMALL.keep)
    assert report.proved and not report.findings


EVALUATE = "\n[evaluate]\nshare = 0.2\nrows = 30\nevery_rows = 20\n"


def test_status_shows_what_the_learner_keeps_and_loses(tmp_path: Path) -> None:
    """By rows it never learned, beside the two answers without a model; all rows are accounted for.

    Every record has its own fixed time: a row's time decides whether it is held out, and with that the figures.
    """
    log = Instance(load_pipeline(pipeline_in(tmp_path, rows=0, text=PIPELINE + EVALUATE)), tmp_path / ".millrace/digits").log()
    log.append("digits", [Record(row, timestamp_ms=1000 + at) for at, row in enumerate(flower_rows(300))])
    done = millrace("run", "digits.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    status = facts(tmp_path)
    assert 30 < status["held_out_rows"] == status["passed"] and status["learned"] + status["passed"] == status["records"] == 300
    assert status["held_out_kept"] == 30 and status["held_out_evaluations"] >= 9
    assert status["held_out_accuracy"] > max(status["held_out_accuracy_last"], status["held_out_accuracy_majority"])
    assert {f"held_out_recall_{name}" for name in ("rose", "tulip", "daisy")} <= status.keys()
    assert {"held_out_forgetting", "held_out_worst_case_accuracy", "held_out_amca"} <= status.keys()
    proved = millrace("verify", "digits.toml", cwd=tmp_path)
    assert proved.returncode == 0, proved.stdout + proved.stderr


def test_evaluating_needs_classes(tmp_path: Path) -> None:
    """Numbers have none; and a share that cannot be meant is named."""
    text = PIPELINE.replace('label = { name = "label" }', 'label = { name = "label", type = "number" }') + EVALUATE
    with pytest.raises(ConfigError, match="scored by class, and this label is a number"):
        load_pipeline(pipeline_in(tmp_path, rows=0, text=text))
    with pytest.raises(ConfigError, match=r"share = 0\.9: must be a number above 0 and up to 0\.5"):
        load_pipeline(pipeline_in(tmp_path, rows=0, text=PIPELINE + EVALUATE), ["evaluate.share=0.9"])
