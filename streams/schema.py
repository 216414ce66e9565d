"""What a record holds, as the pipeline file declares it: fields, label, weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from millrace.learners.declaration import declared, later

Unknown = Literal["reject", "ignore"]  # what becomes of a record with a key that no field, label or weight has
WIDEST = 1_000_000  # columns of x; a learner may need the square of it
TALLEST = 4096  # pixels of a side of a network's input
IMAGE_KEYS = ("backbone", "shape", "features", "sha256")
UNITS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
ZONE = re.compile(r"UTC|[+-](0[0-9]|1[0-4]):[0-5][0-9]")
PAST = ("lag", "mean", "sum", "count", "min", "max", "deviation", "change", "since")  # what a field of an entity's past may be
ALWAYS = ("count", "sum")  # those that there are without any event too
SPAN = re.compile(r"[0-9.]+ ?(ms|s|min|m|h|d|w)")
LATEST_MS = 1 << 53  # of an event's time, either side of 1970: float64 has each millisecond until then
LARGEST = 1e100  # keeps squares and their sums finite in float64


@dataclass(frozen=True, slots=True)
class Field:
    """One feature field of a record.

    Raises: ValueError naming the key and what it must be.

    >>> Field("x", size=64, scale=16.0).width, Field("colour", type="categorical", categories=("red", "blue")).width
    (64, 2)
    """

    name: str  # the key in a row, and the tensor's name when serving
    type: Literal["numeric", "categorical", "image", "time"] = "numeric"  # numbers, a name, a JPEG or PNG, or a moment
    size: int = 1  # >= 1, numbers in the field; above 1 the row holds an array of exactly so many
    center: float = 0.0  # in (-1e100, 1e100), ``x = (value - center) / scale``; for values far from zero, such as times
    scale: float = 1.0  # in (0, 1e100], in the value's unit; more makes x smaller
    # null or an absent key: a dead letter; the mean so far; 0, and a column that says so; a category of its own
    missing: Literal["reject", "mean", "indicator", "category"] = "reject"
    categories: tuple[str, ...] | Literal["grow", "hash"] = ()  # fixed names; or slots in order of arrival; or by hash
    max: int = 0  # >= 1, slots of "grow" and "hash"; more tells more categories apart
    backbone: str = ""  # the network of an image, an ONNX file beside the pipeline's; center and scale are of its input
    shape: tuple[int, int] = (0, 0)  # in [1, 4096], height and width of the network's input
    features: int = 0  # >= 1, numbers in the network's output ``features``
    sha256: str = ""  # hash of the network's file; empty: that of the file when the pipeline is read
    # of a time, which is so many of them since 1970-01-01T00:00Z; center and scale are in it
    unit: Literal["ns", "us", "ms", "s", "min", "h", "d"] = later("s")
    zone: str = later("UTC")  # UTC, or an offset such as +02:00: of times that are written without one
    low: float = later(-LARGEST)  # in [-1e100, 1e100], least value that the field takes, in the value's unit
    high: float = later(LARGEST)  # in [-1e100, 1e100] and at least low, largest value that the field takes
    # a value below low or above high: a dead letter; the nearer of the two; as if there were none
    outside: Literal["reject", "clip", "missing"] = later("reject")
    # center and scale are declared, though one of them is its default; true by itself where a file with shards writes both
    scaled: bool = later(False)
    of: str = later("")  # the field of whose past values this one is made, with [entity]; empty: the record brings it itself
    # with of: the value `over` events ago, or of the last `over` events their mean, sum, how many there are, least, largest,
    # standard deviation; the newest less that `over` events before it; the seconds since the event `over` ago
    as_: Literal["", "lag", "mean", "sum", "count", "min", "max", "deviation", "change", "since"] = later("")
    over: str | int = later("")  # with of: how many of the entity's events, at most its window

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        self._check_past()
        numeric = self._check_numeric
        checks = {"numeric": numeric, "time": numeric, "categorical": self._check_categorical, "image": self._check_image}
        checks[self.type]()
        if self.type != "image" and (self.backbone, self.shape, self.features, self.sha256) != ("", (0, 0), 0, ""):
            raise ValueError('backbone, shape, features and sha256 are for type = "image"')
        self._check_time()
        self._check_range()

    def _check_past(self) -> None:
        if not self.of:
            if self.as_ or self.over:
                raise ValueError("as and over say what is made of another field's past; name that field with of")
            return
        if not self.as_:
            raise ValueError(f"of = {self.of!r}: say as what, with as = one of {', '.join(PAST)}")
        if SPAN.fullmatch(over := str(self.over)):
            raise ValueError(f"over = {self.over!r}: a span of time is not there yet; say how many events, such as over = 5")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", over):
            raise ValueError(f"over = {self.over!r}: must be how many events, a whole number from 1")
        if (self.type, self.size, self.low, self.high) != ("numeric", 1, -LARGEST, LARGEST):
            raise ValueError("a field with of is one number of an entity's past; leave type, size, low and high out")
        if (self.as_ in ALWAYS) != (self.missing == "reject"):
            always = f'as = "{self.as_}" is never missing; leave missing out'
            never = f'as = "{self.as_}" is missing where there is no such event: missing must be "mean" or "indicator"'
            raise ValueError(always if self.as_ in ALWAYS else never)

    def _check_range(self) -> None:
        if not self.is_number and self.scaled:
            raise ValueError('scaled is for type = "numeric" and "time"')
        if not self.is_number and (self.low, self.high, self.outside) != (-LARGEST, LARGEST, "reject"):
            raise ValueError('low, high and outside are for type = "numeric" and "time"')
        if not -LARGEST <= self.low <= self.high <= LARGEST:
            raise ValueError(f"low = {self.low}, high = {self.high}: must be numbers up to {LARGEST:g}, low not above high")
        if self.outside == "missing" and self.missing == "reject":
            raise ValueError('outside = "missing": needs missing = "mean" or "indicator", which say what stands in')

    def _check_time(self) -> None:
        if self.type != "time" and (self.unit, self.zone) != ("s", "UTC"):
            raise ValueError('unit and zone are for type = "time"')
        if not ZONE.fullmatch(self.zone):
            raise ValueError(f'zone = "{self.zone}": must be UTC or an offset such as +02:00; what a name stands for changes')
        if self.type == "time" and self.size != 1:
            raise ValueError(f'size = {self.size}: a field of type = "time" holds one')

    def _check_numeric(self) -> None:
        if self.size < 1:
            raise ValueError(f"size = {self.size}: must be at least 1")
        if not (0 < self.scale <= LARGEST and abs(self.center) < LARGEST * min(1.0, self.scale)):  # a missing 0 must scale
            raise ValueError(f"center = {self.center}, scale = {self.scale}: must be finite, scale above 0")
        if self.categories or self.max or self.missing == "category":
            raise ValueError('categories, max and missing = "category" are for type = "categorical"')
        if self.size > 1 and self.missing != "reject":
            raise ValueError(f'missing = "{self.missing}": an array of {self.size} numbers can only be missing = "reject"')

    def _check_categorical(self) -> None:
        if self.size != 1 or self.center != 0.0 or self.scale != 1.0:
            raise ValueError('size, center and scale are for type = "numeric"')
        if self.missing not in ("reject", "category"):
            raise ValueError(f'missing = "{self.missing}": a categorical field has "reject" or "category"')
        if self.categories in ("grow", "hash"):
            if self.max < 1:
                raise ValueError(f'max = {self.max}: categories = "{self.categories}" needs at least 1 slot')
        elif not self.categories or isinstance(self.categories, str):
            raise ValueError(f'categories = {self.categories!r}: must be a list of names, "grow" or "hash"')
        elif self.max or len(set(self.categories)) < len(self.categories):
            raise ValueError("categories: a list of names must have no name twice, and no max beside it")

    def _check_image(self) -> None:
        if self.size != 1 or self.missing != "reject" or self.categories or self.max:
            raise ValueError('size, missing, categories and max are not for type = "image"')
        if not (all(1 <= side <= TALLEST for side in self.shape) and self.features >= 1):
            raise ValueError(f"shape = {list(self.shape)}, features = {self.features}: an image needs both, from 1 on")
        if not (0 < self.scale <= LARGEST and abs(self.center) <= LARGEST):
            raise ValueError(f"center = {self.center}, scale = {self.scale}: must be finite, scale above 0")

    @property
    def is_number(self) -> bool:
        """Whether its cells are numbers by the time that they are decoded."""
        return self.type in ("numeric", "time")

    @property
    def width(self) -> int:
        """Columns of x that this field takes."""
        if self.type == "image":
            return self.features
        if self.is_number:
            return self.size + (self.missing == "indicator")
        slots = {"grow": self.max + 1, "hash": self.max}  # the one more is "other"
        one_hot_width = slots[self.categories] if isinstance(self.categories, str) else len(self.categories)
        return one_hot_width + (self.missing == "category")


@dataclass(frozen=True, slots=True)
class Label:
    """What is to be predicted. Null or an absent key is a row without a label."""

    name: str  # the key in a row
    type: Literal["string", "integer", "boolean", "number"] = "string"  # a number makes a regression, the others make classes

    @property
    def task(self) -> str:
        """``classify`` or ``regress``.

        >>> Label("digit", "integer").task, Label("price", "number").task
        ('classify', 'regress')
        """
        return "regress" if self.type == "number" else "classify"


MOST_S = 1_000_000  # a proxy counts milliseconds in 31 bits


@dataclass(frozen=True, slots=True)
class Llm:
    """A language model whose completions are learned from, in place of fields and label.

    Raises: ValueError naming the key and what it must be.
    """

    target: str  # folder of the model that answers, as Hugging Face lays it out, beside the pipeline's file
    draft: str  # folder of the draft that learning begins with, of the same vocabulary
    # whose completions serving puts into the log: those of "all", of "none", or of a list of tenants
    capture: Literal["all", "none"] | tuple[str, ...]
    k: int = 4  # in [1, 255], tokens drafted a step; more gains more where most are accepted
    top: int = 20  # in [1, 4096], log probabilities kept of each token; more says more of what the target thought
    # >= 1, milliseconds that the log keeps a completion or a dead letter which no branch has still to read; a week. What a
    # draft keeps to learn from again is bounded in tokens, not in time
    keep_ms: int = 604_800_000
    target_sha256: str = ""  # of the target's folder; empty: that of the folder when the pipeline is read
    draft_sha256: str = ""  # the same of the draft's
    vocabulary: int = 0  # >= 0, tokens that both know; 0: as their configs say, of which one is to be there then
    # how tokens are drafted for requests above temperature 0: "probabilistic" accepts more, "greedy" drafts the likeliest
    draft_sampling: Literal["probabilistic", "greedy"] = "probabilistic"
    # what becomes of the state that a draft keeps of prompts, once another draft is there: "lazy" leaves it, "reset" drops it
    # and computes running requests anew, "drain" ends running requests first, and lets new ones wait
    kv_policy: Literal["lazy", "reset", "drain"] = "lazy"
    show_counts: bool = False  # whether answers have their own accepted and drafted counts; they tell of the text of others
    options: tuple[str, ...] = ()  # further words of vLLM's own command line, such as "--dtype", "float32"
    # >= 0, completions after which the newest draft is served, again and again; 0: an operator serves one (`millrace serve`)
    promote_rows: int = 0
    answer_s: float = 600.0  # in [0.001, 1000000], seconds that a caller waits for the next byte of an answer at most

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        if not 0.001 <= self.answer_s <= MOST_S:
            raise ValueError(f"answer_s = {self.answer_s}: must be from 0.001 to {MOST_S}")
        for name, high in (("k", 255), ("top", 4096), ("keep_ms", 1 << 53)):
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"{name} = {getattr(self, name)}: must be from 1 to {high}")
        for name in ("vocabulary", "promote_rows"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 0")


LLM_DECLARED = ("k", "top", "target_sha256", "draft_sha256", "vocabulary")  # what changes what is learned
UNDECLARED = {"target": "", "draft": "", "capture": "none"}  # what may change, and has no default
ACCEPTED = Label("accepted", "number")  # stands where a pipeline of completions has no label: accepted and tested positions


@dataclass(frozen=True, slots=True)
class Entity:
    """Whose row it is, and what is kept of each one's past: a window of its last events, of which fields are made.

    Every key changes what is learned. Raises: ValueError naming the key and what it must be.
    """

    key: str  # the row's key that names the entity: a text, an integer or a boolean; it need be none of the fields
    # the row's key that holds the event's time: milliseconds since 1970, or ISO 8601; it need be none of the fields. Empty, or
    # absent in a row: the record's timestamp, and for a request now
    time: str = ""
    window: int = 16  # in [1, 256], events of each entity that are kept; more looks further back and costs as much more memory
    # in [1, 2^50), milliseconds of the journal's clock without an event after which an entity is let go; 30 days
    idle_ms: int = 2_592_000_000
    max: int = 10_000  # >= 1, entities that are kept; past it the longest idle is let go. What is published grows with it
    ahead_ms: int = 60_000  # in [0, 2^50), milliseconds; an event whose time is further past its record's timestamp is left out
    # which rows are events: those of the "stream", or answered "requests"; must be said where there is a table [labels]
    events: Literal["stream", "requests"] = "stream"

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        if not self.key or self.key == self.time:
            raise ValueError(f"key = {self.key!r}, time = {self.time!r}: key must be named, and time be another key")
        for name, low, high in (("window", 1, 256), ("idle_ms", 1, (1 << 50) - 1), ("ahead_ms", 0, (1 << 50) - 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} = {getattr(self, name)}: must be from {low} to {high}")
        if self.max < 1:
            raise ValueError(f"max = {self.max}: must be at least 1")

    def published_bytes(self, numbers: int) -> int:
        """Of all windows as replicas get them, at most, where so many numbers of an event are kept."""
        return self.max * 8 * (3 + self.window * (1 + numbers))


@dataclass(frozen=True, slots=True)
class Schema:
    """A record's fields in the order of their columns, and behind them those that are made of an entity's past."""

    fields: tuple[Field, ...]  # that a record brings
    label: Label
    weight: str | None = None  # the key of a row's weight, a number >= 0; more counts more
    llm: Llm | None = later(None)  # records are completions; there are no fields then
    entity: Entity | None = later(None)  # whose row it is; None: rows are nobody's
    past: tuple[Field, ...] = later(())  # made of an entity's window
    aside: tuple[str, ...] = later(())  # names of ``fields`` that say whose row it is and when, and are in no column of x

    def __post_init__(self) -> None:
        """Refuse names that stand twice."""
        names = [field.name for field in (*self.fields, *self.past)] + [
            self.label.name,
            *([self.weight] if self.weight else []),
        ]
        twice = sorted({name for name in names if names.count(name) > 1})
        if self.width > WIDEST:
            raise ValueError(f"the fields make {self.width} columns; more than {WIDEST} are refused")
        if twice or bool(self.fields) == (self.llm is not None):
            raise ValueError(f"field names stand twice: {', '.join(twice)}" if twice else "there must be at least one field")

    @property
    def features(self) -> tuple[Field, ...]:
        """The fields that columns of x are made of, in their order."""
        if self.entity is None:
            return self.fields
        return tuple(field for field in self.fields if field.name not in self.aside) + self.past

    @property
    def task(self) -> str:
        """``classify`` or ``regress``, as the label says; ``distil`` where records are completions."""
        return self.label.task if self.llm is None else "distil"

    @property
    def names(self) -> frozenset[str]:
        """Every key that a row may have."""
        return frozenset([*(field.name for field in self.fields), self.label.name, *([self.weight] if self.weight else [])])

    @property
    def plain(self) -> bool:
        """Whether every field is one number that stands in x as it is."""
        return self.fields == tuple(Field(field.name) for field in self.fields)

    @property
    def width(self) -> int:
        """d, the columns of x."""
        return sum(field.width for field in self.features)

    @property
    def declared(self) -> bytes:
        """The declaration as JSON; its hash stands in every fork. A network is named by its sha256, wherever it lies."""
        written = declared(self)
        for field in [*written["fields"], *written.get("past", ())]:
            for key in ("backbone",) if field["type"] == "image" else IMAGE_KEYS:
                del field[key]
        if self.llm is not None:
            written["llm"] = UNDECLARED | {key: written["llm"][key] for key in LLM_DECLARED}
        return msgspec.json.encode(written, order="sorted")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; a list of tables is numbered, another list is a value.

    >>> leaves({"learner": {"gamma": 1.0}, "fields": [{"name": "x", "categories": ["a", "b"]}]})
    {'learner.gamma': 1.0, 'fields[0].name': 'x', 'fields[0].categories': ['a', 'b']}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= leaves(value, f"{name}.")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            for at, item in enumerate(value):
                flat |= leaves(item, f"{name}[{at}].")
        else:
            flat[name] = value
    return flat
