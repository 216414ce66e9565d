"""The data sets: rows that their own pipeline files accept, and a stream of digits on which a baseline cannot win."""

import re
import sys
from collections import Counter
from itertools import groupby, islice

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import BadInputError
from millrace.services.cli import main
from millrace.services.config.config import load_pipeline
from millrace.services.data.datasets import DATA_SETS, data_set, held_out, pipeline_toml, values
from millrace.services.data.files import digits
from millrace.services.pipeline.instance import Instance
from millrace.streams.features.columns import Features
from millrace.streams.formats.json_rows import has_label
from millrace.streams.records import Event

pytest.importorskip("sklearn", reason="scikit-learn, which brings the digits, is not installed")

SAMPLE = 1500  # rows of each stream


@pytest.fixture(params=DATA_SETS)
def name(request, monkeypatch) -> str:
    """Each data set that can be had here."""
    if request.param != "digits":
        pytest.importorskip("pyarrow", reason="pyarrow, which reads the shared data, is not installed")
        monkeypatch.setenv("MILLRACE_DATA", str(request.getfixturevalue("data_dir")))
    return request.param


def instance_of(name, folder) -> Instance:
    """The data set's own pipeline, written and read again."""
    path = folder / "pipeline.toml"
    path.write_text(pipeline_toml(name), encoding="utf-8")
    return Instance(load_pipeline(path), folder)


def events_of(rows) -> list[Event]:
    """Rows as they would lie in the log."""
    return [Event(offset, 1, None, b"", value) for offset, value in enumerate(rows)]


def labels_of(rows, label) -> list:
    """The labels of JSON rows."""
    return [msgspec.json.decode(value)[label] for value in rows]


def share_like_the_last(labels) -> float:
    """How often a label is the one before it."""
    return sum(a == b for a, b in zip(labels, labels[1:], strict=False)) / len(labels)


def test_every_row_is_accepted_by_its_own_pipeline(name, tmp_path) -> None:
    """Rows of the stream's beginning and of the held-out part decode without a refusal, to numbers and a label each."""
    instance = instance_of(name, tmp_path)
    for rows in (list(islice(values(name), SAMPLE)), held_out(name)[:SAMPLE]):
        decoded, refused = instance.fold_spec.codec.decode(events_of(rows))
        assert [(row.reason, row.detail) for row in refused] == []
        x, _ = Features(instance.fold_spec.schema).encoded(decoded.columns, decoded.plain)
        assert x.shape == (len(rows), instance.fold_spec.schema.width)
        assert np.isfinite(x).all()
        assert has_label(decoded).all()


def test_a_pipeline_file_says_what_the_record_says(name, tmp_path) -> None:
    """The written file, read again, has the same fields and label, and is called as it was told."""
    pipeline = instance_of(name, tmp_path).loaded.pipeline
    assert (pipeline.name, pipeline.fields, pipeline.label) == (name, data_set(name).fields, data_set(name).label)
    assert 'name = "other"' in pipeline_toml(name, "other")


def test_the_same_seed_gives_the_same_stream(name) -> None:
    """Rows and their order follow from the seed alone."""
    assert list(islice(values(name, 7), 50)) == list(islice(values(name, 7), 50))
    assert held_out(name, 7)[:50] == held_out(name, 7)[:50]


@pytest.mark.parametrize("seed", range(5))
def test_no_digit_is_both_streamed_and_held_out(seed) -> None:
    """A fifth of each class is held out, the rest is streamed, each row once."""
    table = digits(seed)
    assert sorted([*table.stream, *table.held_out]) == list(range(len(table.columns["digit"])))
    whole, out = Counter(table.columns["digit"].tolist()), Counter(table.columns["digit"][table.held_out].tolist())
    assert {digit: out[digit] for digit in whole} == {digit: rows // 5 for digit, rows in whole.items()}


@pytest.mark.parametrize("seed", range(5))
def test_classes_of_digits_join_one_after_the_other(seed) -> None:
    """All ten classes come, at places that spread over the stream, and each goes on to the end once it has joined."""
    labels = labels_of(values("digits", seed), "digit")
    first = sorted(labels.index(digit) for digit in range(10))
    assert first[2:] == sorted(set(first[2:]))
    assert 0.4 < first[-1] / len(labels) < 0.65
    assert all(later - earlier > 5 for earlier, later in zip(first[2:], first[3:], strict=False))
    assert set(labels[-200:]) == set(range(10))


@pytest.mark.parametrize("seed", range(5))
def test_no_block_of_one_digit_lets_the_last_label_win(seed) -> None:
    """The classes are mixed: no long run, and the last label is right in a fifth of all rows at most."""
    labels = labels_of(values("digits", seed), "digit")
    assert max(len(list(run)) for _, run in groupby(labels)) <= 10
    assert share_like_the_last(labels) < 0.2


def test_sorted_by_class_the_last_label_would_win() -> None:
    """The check above fails on a stream in which the classes come in blocks."""
    assert share_like_the_last(sorted(labels_of(values("digits"), "digit"))) > 0.99


def test_another_seed_gives_another_order() -> None:
    """The seed decides the order of the digits and what is held out."""
    assert list(values("digits", 1)) != list(values("digits", 2))
    assert held_out("digits", 1) != held_out("digits", 2)


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    """A misspelt data set is answered with the one that was meant and with all there are."""
    with pytest.raises(BadInputError, match=r"'digit'.*Did you mean digits\?.*There are: digits, elec2"):
        values("digit")


def test_a_missing_file_says_where_it_was_looked_for(monkeypatch, tmp_path) -> None:
    """Without the shared data the message names the file and MILLRACE_DATA."""
    monkeypatch.setenv("MILLRACE_DATA", str(tmp_path))
    with pytest.raises(BadInputError, match=r"sea\.npz is not there\. Set MILLRACE_DATA"):
        values("sea")


MISSING = [("digits", "sklearn.datasets", "demo"), ("elec2", "pyarrow.parquet", "parquet")]


@pytest.mark.parametrize(("name", "module", "extra"), MISSING)
def test_a_missing_package_says_what_to_install(name, module, extra, monkeypatch, tmp_path) -> None:
    """Without the package that reads a data set the message names the extra that brings it."""
    (tmp_path / "elec2").mkdir()
    (tmp_path / "elec2" / "elec2.parquet").touch()
    monkeypatch.setenv("MILLRACE_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(BadInputError, match=re.escape(how_to_get(extra))):
        values(name)


def test_data_help_lists_every_data_set() -> None:
    """`millrace send --data help` needs no pipeline file and prints a line for each."""
    done = CliRunner().invoke(main, ["send", "--data", "help"])
    assert (done.exit_code, [line.split()[0] for line in done.stdout.splitlines()]) == (0, list(DATA_SETS))
