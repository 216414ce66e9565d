"""What `make bench-continual` runs: its streams, its figures, and that it goes on where it was stopped."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from continual_runs import QUICK, Request, asked_for, best_rates, figures, kept, looks, network_config, searched, taught
from continual_streams import SplitStream, split_cifar, split_mnist
from continual_table import drawn, inside, markdown, printed
from PIL import Image


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which each class has a bright stripe of its own, in the files and the forms of shared/data."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    named: dict[str, Any] = {}
    jpeg: dict[str, Any] = {}
    for split, count in (("train", 600), ("test", 200)):
        y = np.arange(count) % 10
        x = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        x[np.arange(count), 2 + 2 * y] = 250
        named |= {f"x_{split}": x, f"y_{split}": y}
        files = [_jpeg(np.pad(image, 2)) for image in x]
        jpeg |= {f"jpeg_{split}": np.frombuffer(b"".join(files), np.uint8), f"y_{split}": y}
        jpeg |= {f"off_{split}": np.concatenate([[0], np.cumsum([len(file) for file in files])])}
    for name, arrays in (("mnist/mnist.npz", named), ("cifar10/cifar10_jpeg.npz", jpeg)):
        (folder / name).parent.mkdir()
        np.savez(folder / name, **arrays)
    return folder


def _jpeg(grey: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(("split", "shape"), [(split_mnist, (1, 28, 28)), (split_cifar, (3, 32, 32))])
def test_a_split_stream_has_every_row_once_two_classes_a_task(split: Any, shape: tuple[int, ...], data: Path) -> None:
    """In an order that the seed alone decides; what is held out has as many rows of each class."""
    stream, same, other = (split(data, seed, 600) for seed in (1, 1, 2))
    assert stream.x.shape == (600, *shape)
    assert sorted(stream.y.tolist()) == sorted(np.arange(600) % 10)
    assert (np.diff(stream.task) >= 0).all()
    assert [len(set(stream.y[stream.task == task])) for task in range(5)] == [2] * 5
    assert (stream.x == same.x).all()
    assert (stream.y == same.y).all()
    assert (stream.y != other.y).any()
    assert (np.bincount(stream.held_y) == 20).all()
    assert all(set(stream.held_y[stream.held_task == task]) == set(stream.y[stream.task == task]) for task in range(5))


def test_evaluations_are_every_so_many_rows_and_at_each_task_end() -> None:
    """Tasks of 4, 3 and 3 rows, looked at every 2 rows."""
    task = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    stream = SplitStream("s", np.zeros((10, 1)), task, task, np.zeros((3, 1)), np.arange(3), np.arange(3))
    assert looks(stream, 2) == ([2, 4, 6, 7, 8, 10], [1, 3, 5])


def test_the_figures_are_those_of_a_curve_worked_out_by_hand() -> None:
    """Two tasks and three evaluations: the first task falls from 1.0 to 0.2 and comes back to 0.6."""
    measured = figures(np.array([[1.0, np.nan], [0.2, 0.5], [0.6, 0.9]]), [0, 2])
    assert measured == pytest.approx({"accuracy": 0.75, "aaa": (1.0 + 0.35 + 0.75) / 3, "wc_acc": 0.55, "forgetting": 0.4})


def request_of(kind: str, **config: Any) -> Request:
    """A small run on split MNIST."""
    return Request("ours", "mnist", kind, kind, 0, 600, 10, config.get("buffer_rows", 0), config)


@pytest.mark.parametrize("kind", ["ridge", "er", "pec"])
def test_a_run_learns_and_says_what_it_took(kind: str, data: Path) -> None:
    """On stripes that any learner can tell apart; a ridge forgets nothing of them."""
    config = {"solve_rows": 100} if kind == "ridge" else network_config("mnist", kind, 100, 0.1 if kind == "er" else 0.003)
    result = taught(request_of(kind, **config), split_mnist(data, 0, 600))
    assert result["accuracy"] > {"ridge": 0.99, "er": 0.5, "pec": 0.5}[kind]
    assert all(0.0 <= result[name] <= 1.0 for name in ("aaa", "wc_acc"))
    assert result["bytes"] > (784 * 785 * 4 if kind == "ridge" else 0)
    assert result["rows_per_s"] > 0.0


def test_a_run_that_is_there_is_read_and_one_of_other_settings_is_run(tmp_path: Path) -> None:
    """And one that was stopped leaves nothing that is taken for a run."""
    ran: list[str] = []

    def run(name: str) -> dict[str, Any]:
        ran.append(name)
        if name == "stopped":
            raise KeyboardInterrupt
        return {"accuracy": 0.5}

    first, other = request_of("er", rate=0.1, classes=("0", "1")), request_of("er", rate=0.3, classes=("0", "1"))
    with pytest.raises(KeyboardInterrupt):
        kept(first, tmp_path, lambda: run("stopped"))
    once = kept(first, tmp_path, lambda: run("first"))
    assert kept(first, tmp_path, lambda: run("again")) == once
    assert kept(other, tmp_path, lambda: run("other"))["request"]["config"]["rate"] == 0.3
    assert ran == ["stopped", "first", "other"]


def test_every_learner_of_the_issue_is_asked_for_at_the_best_rate_of_its_search(tmp_path: Path) -> None:
    """A search in which the nearest to 0.1 is the best; each method then runs with it on each stream, mammoth's beside ours."""
    runs = [
        {"request": request.plain(), "accuracy": 1.0 - abs(request.config["rate"] - 0.1)}
        for request in searched(QUICK, ("ours", "mammoth"))
    ]
    rates = best_rates(runs)
    assert (rates["ours", "mnist", "er"], rates["mammoth", "cifar", "derpp"]) == (0.1, 0.03)
    wanted = asked_for(QUICK, rates)
    kinds = {"er", "er-ace", "derpp", "uer", "pcr", "hpcr", "onpro", "pec", "ridge", "slda", "ncm", "air", "aef-ocl"}
    for stream in ("mnist", "cifar"):
        assert {run.kind for run in wanted if run.side == "ours" and run.stream == stream} == kinds
        assert {run.kind for run in wanted if run.side == "mammoth" and run.stream == stream} == {"er", "er-ace", "derpp"}
    assert any(run.stream == "features" for run in wanted)
    assert len({(run.side, run.name) for run in wanted}) == len(wanted)


def test_the_table_says_what_finished_and_whether_we_are_inside_the_interval(tmp_path: Path) -> None:
    """Two seeds each of ours and mammoth's, of which ours are better on MNIST and worse on CIFAR-10."""
    runs = []
    for side, shift in (("ours", 0.1), ("mammoth", 0.0)):
        for stream, sign in (("mnist", 1.0), ("cifar", -1.0)):
            for seed in (0, 1):
                asked = Request(side, stream, "er", "er", seed, 100, 10, 200, {"rate": 0.1}).plain()
                figures_of = dict.fromkeys(("aaa", "wc_acc", "forgetting"), 0.5)
                sized = {"bytes": 2048, "rows_per_s": 100.0, "accuracy": 0.5 + shift * sign + 0.002 * seed}
                runs.append({"request": asked, **figures_of, **sized})
    text = markdown(runs, 9)
    assert "8 of 9 runs" in text
    assert "| er | 200 | 60.1 ± 0.1 | 50.0 | 50.0 | 50.0 | 2 | 100 | 2 | rate 0.1 |" in text
    inside = {line["case"]: line["inside_or_above"] for line in printed(runs) if line["unit"] == "final accuracy"}
    assert list(inside.values()) == [False, True]
    assert json.dumps(list(printed(runs)))
    drawn(runs, tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes()[:4] == b"\x89PNG"


def test_a_mean_below_theirs_is_inside_where_the_interval_reaches_it() -> None:
    """The half width for means of two is t(2) s, where both sides have the deviation s."""
    ours, theirs = ([{"accuracy": mean + step} for step in (-0.01, 0.01)] for mean in (0.5, 0.51))
    held, width = inside(ours, theirs)
    assert held
    assert width == pytest.approx(4.303 * 0.01 * 2**0.5)
