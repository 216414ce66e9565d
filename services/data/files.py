"""What a data set is, and the files behind them read into columns: which rows are streamed, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array
from millrace.services.config.config import data_folder
from millrace.streams.formats.arrow import parquet_table
from millrace.streams.schema import Field, Label

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
COMMON_WORDS = 500
HELD_OUT_ROWS = 2000  # at most, of a test set: enough for an accuracy to half a point
LAST_JOINS_AT = 0.7  # of the time of a stream of joining classes; about half of its rows come later

Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table:
    """All rows of a data set, column by column."""

    columns: dict[str, Array]  # (n,) or (n, size)
    stream: Order  # row numbers in the order of the stream
    held_out: Order  # row numbers that are never streamed


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon a learner of this stream learns, solves and is marked, in rows."""

    batch: int = 32  # of a training batch
    solve: int = 64
    step: int = 64
    version: int = 400


@dataclass(frozen=True, slots=True)
class DataSet:
    """A stream, what its records hold, and a ridge that fits it."""

    about: str  # one line
    fields: tuple[Field, ...]
    label: Label
    load: Callable[[int], Table]  # by seed
    pace: Pace = Pace()
    ridge: dict[str, float] = field(default_factory=dict)  # keys of RidgeConfig that differ from its defaults


def digits(seed: int) -> Table:
    """Held out: a fifth of each class. Streamed: the rest, as ``joining`` orders it.

    Raises: BadInputError where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BadInputError(f"Data set digits comes with scikit-learn. {how_to_get('demo')}") from error
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(np.flatnonzero(y == digit)) for digit in np.unique(y)]
    held_out = np.concatenate([rows[: len(rows) // 5] for rows in shuffled])
    streamed = [rows[len(rows) // 5 :] for rows in shuffled]
    return Table({"x": x.astype(np.int64), "digit": y}, joining(streamed, rng), np.sort(held_out))


def joining(classes: list[Order], rng: np.random.Generator) -> Order:
    """The rows of all classes in one order: two classes from the start, then one after the other joins them.

    From the moment it joins, a class is spread evenly at random to the stream's end, so there is no block of one class.
    """
    arriving = [classes[at] for at in rng.permutation(len(classes))]
    starts = np.concatenate(([0.0], np.linspace(0.0, LAST_JOINS_AT, len(classes) - 1)))
    places = [rng.uniform(start, 1.0, len(rows)) for start, rows in zip(starts, arriving, strict=True)]
    return np.concatenate(arriving)[np.argsort(np.concatenate(places))]


def parquet(path: str, seed: int, drop: tuple[str, ...] = ()) -> Table:
    """Every column of a file, in the file's order."""
    columns = {name: column for name, column in _parquet_columns(path).items() if name not in drop}
    return _in_order(columns)


def parquet_packed(path: str, share: float, seed: int) -> Table:
    """Columns f0, f1 ... as one field ``x``; a ``share`` of the rows, drawn by ``seed``, is held out."""
    columns = _parquet_columns(path)
    x = np.column_stack([column for name, column in columns.items() if name != "target"])
    held_out = np.random.default_rng(seed).random(len(x)) < share
    return Table({"x": x, "target": columns["target"]}, np.flatnonzero(~held_out), np.flatnonzero(held_out))


def nsl_kdd(seed: int) -> Table:
    """Streamed: the published fifth of the training set. Held out: some rows of the test set."""
    train, test = _parquet_columns("nsl_kdd/train20.parquet"), _parquet_columns("nsl_kdd/test.parquet")
    names = [name for name in train if name not in ("difficulty", "is_attack")]  # both give the label away
    columns = {name: np.concatenate([train[name], test[name]]) for name in names}
    return _then_test(columns, len(train["attack"]), seed)


def mnist(seed: int) -> Table:
    """Streamed: the training set in its published order. Held out: some rows of the test set."""
    parts = _npz("mnist/mnist.npz")
    x = np.concatenate([parts["x_train"], parts["x_test"]]).reshape(-1, 784)
    y = np.concatenate([parts["y_train"], parts["y_test"]])
    return _then_test({"x": x, "digit": y}, len(parts["y_train"]), seed)


def arrays(path: str, seed: int) -> Table:
    """The arrays x and y of a file, in the file's order."""
    return _in_order(dict(_npz(path)))


def spam(seed: int) -> Table:
    """Mails in the file's order; ``x`` says which of the words that are commonest in the first tenth are in each."""
    parts = _npz("spam/spam_csr.npz")
    rows, words, ends = len(parts["y"]), parts["indices"], parts["indptr"]
    counts = np.bincount(words[: ends[rows // 10]], minlength=int(parts["shape"][1]))
    commonest = np.argsort(-counts, kind="stable")[:COMMON_WORDS]
    place = np.full(len(counts), -1)
    place[commonest] = np.arange(COMMON_WORDS)
    of_mail = np.repeat(np.arange(rows), np.diff(ends))
    known = place[words] >= 0
    x = np.zeros((rows, COMMON_WORDS), dtype=np.int64)
    x[of_mail[known], place[words[known]]] = 1
    return _in_order({"x": x, "spam": parts["y"].astype(np.int64)})


def metro_traffic(seed: int) -> Table:
    """The file's rows, with hour and weekday in place of the time."""
    columns = _parquet_columns("metro_traffic/metro_interstate_traffic.parquet")
    times = columns.pop("date_time").astype("datetime64[s]")
    return _in_order(columns | {"hour": _hours(times), "weekday": _weekdays(times)})


def ett_small(seed: int) -> Table:
    """The file's rows, with the hour in place of the time."""
    columns = _parquet_columns("ett_small/ETTh1.parquet")
    return _in_order(columns | {"hour": _hours(columns.pop("date").astype("datetime64[s]"))})


def _in_order(columns: dict[str, Array]) -> Table:
    rows = len(next(iter(columns.values())))
    return Table(columns, np.arange(rows), np.arange(0))


def _then_test(columns: dict[str, Array], trained: int, seed: int) -> Table:
    """The first ``trained`` rows are streamed; of the others some are held out."""
    rows = len(next(iter(columns.values())))
    drawn = np.random.default_rng(seed).choice(np.arange(trained, rows), min(HELD_OUT_ROWS, rows - trained), replace=False)
    return Table(columns, np.arange(trained), np.sort(drawn))


def _hours(times: Array) -> Array:
    return np.array([str(hour) for hour in (times.astype("datetime64[h]").astype(np.int64) % 24).tolist()], dtype=object)


def _weekdays(times: Array) -> Array:
    days = (times.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
    return np.array([WEEKDAYS[day] for day in days.tolist()], dtype=object)


def _path(name: str) -> Path:
    path = data_folder() / name
    if not path.is_file():
        raise BadInputError(
            f"{path} is not there. Set MILLRACE_DATA to the folder of the shared data, or take --data digits, which "
            "scikit-learn brings."
        )
    return path


def _parquet_columns(name: str) -> dict[str, Array]:
    table = parquet_table(_path(name))
    return {name: table[name].to_numpy() for name in table.column_names}


def _npz(name: str) -> dict[str, Array]:
    with np.load(_path(name), allow_pickle=False) as parts:
        return {key: parts[key] for key in parts.files}
