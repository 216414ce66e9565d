"""The data sets that `millrace send --data` and `make run` know: one record each, and the rows as JSON.

``digits`` comes with scikit-learn (the extra ``demo``). The others lie in the shared data folder
(``MILLRACE_DATA``, else ``../shared/data``) and are for development only. A file in that folder says where each is
from and under which licence.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from functools import partial

import msgspec

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array
from millrace.services.data import files as tables
from millrace.services.data import templates as pipeline_text
from millrace.services.data.files import DataSet, Pace, Table
from millrace.streams.schema import Field, Label

CONVERT_ROWS = 256  # rows turned into plain values at a time


SHORT = Pace(batch=8, solve=16, step=32, version=100)  # for streams of one or two thousand rows


def numeric(*names: str) -> tuple[Field, ...]:
    """One plain number under each name."""
    return tuple(Field(name) for name in names)


def fixed(name: str, *categories: str) -> Field:
    """A categorical field whose values are known."""
    return Field(name, "categorical", categories=categories)


HOUR = fixed("hour", *map(str, range(24)))
WEEKDAY = fixed("weekday", *tables.WEEKDAYS)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEATHER = ("Clouds", "Clear", "Rain", "Drizzle", "Mist", "Haze", "Fog", "Thunderstorm", "Snow", "Squall", "Smoke")
HOLIDAYS = (
    ("None", "Columbus Day", "Veterans Day", "Thanksgiving Day", "Christmas Day", "New Years Day")
    + ("Washingtons Birthday", "Memorial Day", "Independence Day", "State Fair", "Labor Day")
    + ("Martin Luther King Jr Day",)
)
KDD_FLAGS = ("SF", "S0", "REJ", "RSTR", "SH", "RSTO", "S1", "RSTOS0", "S3", "S2", "OTH")
KDD_NUMBERS = (
    "duration",
    "src_bytes",
    "dst_bytes",
    "land",
    "wrong_fragment",
    "urgent",
    "hot",
    "num_failed_logins",
    "logged_in",
    "num_compromised",
    "root_shell",
    "su_attempted",
    "num_root",
    "num_file_creations",
    "num_shells",
    "num_access_files",
    "num_outbound_cmds",
    "is_host_login",
    "is_guest_login",
    "count",
    "srv_count",
    "serror_rate",
    "srv_serror_rate",
    "rerror_rate",
    "srv_rerror_rate",
    "same_srv_rate",
    "diff_srv_rate",
    "srv_diff_host_rate",
    "dst_host_count",
    "dst_host_srv_count",
    "dst_host_same_srv_rate",
    "dst_host_diff_srv_rate",
    "dst_host_same_src_port_rate",
    "dst_host_srv_diff_host_rate",
    "dst_host_serror_rate",
    "dst_host_srv_serror_rate",
    "dst_host_rerror_rate",
    "dst_host_srv_rerror_rate",
)
BANK = (
    *numeric("age", "campaign", "pdays", "previous"),
    *numeric("emp.var.rate", "cons.price.idx", "cons.conf.idx", "euribor3m", "nr.employed"),
    Field("job", "categorical", categories="grow", max=16),
    Field("education", "categorical", categories="grow", max=12),
    fixed("marital", "married", "single", "divorced", "unknown"),
    *(fixed(name, "no", "yes", "unknown") for name in ("default", "housing", "loan")),
    fixed("contact", "telephone", "cellular"),
    fixed("month", *MONTHS),
    fixed("day_of_week", "mon", "tue", "wed", "thu", "fri"),
    fixed("poutcome", "nonexistent", "failure", "success"),
)

DATA_SETS: dict[str, DataSet] = {
    "digits": DataSet(
        "scikit-learn's handwritten digits, 8 x 8 pixels; the ten classes join one by one; a fifth is held out",
        (Field("x", size=64, scale=16.0),),
        Label("digit", "integer"),
        tables.digits,
        SHORT,
        {"expand": 512, "gamma": 0.1, "standardise": False},
    ),
    "elec2": DataSet(
        "electricity market of New South Wales, half-hourly: will the price be above its day's mean? drifts",
        numeric("date", "day", "period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer"),
        Label("up", "integer"),
        partial(tables.parquet, "elec2/elec2.parquet"),
        ridge={"expand": 128, "decay": 0.999},
    ),
    "phishing": DataSet(
        "web sites, 46 yes-or-no marks: phishing or not; a tenth is held out",
        (Field("x", size=46),),
        Label("target", "integer"),
        partial(tables.parquet_packed, "phishing/phishing.parquet", 0.1),
        ridge={"expand": 256},
    ),
    "bank_marketing": DataSet(
        "calls of a Portuguese bank, 2008 to 2010, by date: will the client subscribe? drifts with the crisis",
        BANK,
        Label("y"),
        partial(tables.parquet, "bank_marketing/bank_additional_full.parquet", drop=("duration",)),
        ridge={"decay": 0.9995},
    ),
    "nsl_kdd": DataSet(
        "network connections, normal or one of 21 attacks; held out: the test set, with attacks never streamed",
        (
            fixed("protocol_type", "tcp", "udp", "icmp"),
            Field("service", "categorical", categories="grow", max=70),
            fixed("flag", *KDD_FLAGS),
            *numeric(*KDD_NUMBERS),
        ),
        Label("attack"),
        tables.nsl_kdd,
    ),
    "spam": DataSet(
        "mails in the order in which they came, 500 yes-or-no marks of common words: spam or not; drifts",
        (Field("x", size=tables.COMMON_WORDS),),
        Label("spam", "integer"),
        tables.spam,
        ridge={"decay": 0.9995, "gamma": 10.0},
    ),
    "keystroke": DataSet(
        "typing rhythm of four people, whose habits drift",
        (Field("x", size=10),),
        Label("target", "integer"),
        partial(tables.parquet_packed, "keystroke/keystroke.parquet", 0.0),
        SHORT,
        {"decay": 0.997},
    ),
    "sea": DataSet(
        "synthetic: a sum above a threshold that moves three times, 12,500 rows each",
        (Field("x", size=3),),
        Label("y", "integer"),
        partial(tables.arrays, "drift_synthetic/sea.npz"),
        ridge={"decay": 0.999},
    ),
    "interchanging_rbf": DataSet(
        "synthetic: 15 blobs in the plane that change places every 3,000 rows",
        (Field("x", size=2),),
        Label("y", "integer"),
        partial(tables.arrays, "drift_synthetic/interchanging_rbf.npz"),
        ridge={"expand": 128, "decay": 0.998, "gamma": 0.1},
    ),
    "mnist": DataSet(
        "handwritten digits, 28 x 28 pixels, in their published order; held out: 2,000 of the test set",
        (Field("x", size=784, scale=255.0),),
        Label("digit", "integer"),
        tables.mnist,
        ridge={"expand": 512, "standardise": False},
    ),
    "metro_traffic": DataSet(
        "cars an hour on Interstate 94, 2012 to 2018: how many? (regression)",
        (
            HOUR,
            WEEKDAY,
            fixed("holiday", *HOLIDAYS),
            Field("temp", center=281.0, scale=13.0),
            *numeric("rain_1h", "snow_1h", "clouds_all"),
            fixed("weather_main", *WEATHER),
            Field("weather_description", "categorical", categories="hash", max=64),
        ),
        Label("traffic_volume", "number"),
        tables.metro_traffic,
        ridge={"gamma": 10.0},
    ),
    "ett_small": DataSet(
        "an electricity transformer, hourly, 2016 to 2018: its oil temperature from its loads (regression)",
        (*numeric("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL"), HOUR),
        Label("OT", "number"),
        tables.ett_small,
        ridge={"decay": 0.99},
    ),
}


def data_set(name: str) -> DataSet:
    """The record of a data set.

    Raises: BadInputError for a name that is none, with the nearest one and the list.
    """
    if name not in DATA_SETS:
        close = get_close_matches(name, DATA_SETS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise BadInputError(f"There is no data set {name!r}.{hint} There are: {', '.join(DATA_SETS)}.")
    return DATA_SETS[name]


def listing() -> str:
    """Every data set's name and what it is, a line each."""
    width = max(map(len, DATA_SETS))
    return "\n".join(f"{name.ljust(width)}  {chosen.about}" for name, chosen in DATA_SETS.items())


def values(name: str, seed: int = 0) -> Iterator[bytes]:
    """The stream of a data set as JSON rows, in order; the same seed gives the same rows.

    Raises: BadInputError where the name, a file or a package is missing.
    """
    table = data_set(name).load(seed)
    return encoded(table, table.stream)


def held_out(name: str, seed: int = 0) -> list[bytes]:
    """The JSON rows that ``values`` with the same seed leaves out; none where the stream drifts from start to end.

    Raises: BadInputError where the name, a file or a package is missing.
    """
    table = data_set(name).load(seed)
    return list(encoded(table, table.held_out))


def encoded(table: Table, order: Array) -> Iterator[bytes]:
    """The rows of a table with the numbers ``order`` (n,), as JSON objects."""
    for start in range(0, len(order), CONVERT_ROWS):
        chosen = order[start : start + CONVERT_ROWS]
        cells = [column[chosen].tolist() for column in table.columns.values()]
        for row in zip(*cells, strict=True):
            yield msgspec.json.encode(dict(zip(table.columns, row, strict=True)))


def pipeline_toml(name: str, called: str | None = None) -> str:
    """The text of a pipeline file for a data set; the pipeline is ``called`` like the data set unless told otherwise.

    Raises: BadInputError where there is no such data set.
    """
    return pipeline_text.pipeline_toml(data_set(name), called or name)
