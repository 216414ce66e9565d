"""What a pipeline may say in a chart's values, as a JSON schema made from the records that `millrace config show` checks it by.

A schema says what may stand at each key, and a few things that one key asks of another. What is left (names that stand twice, a
detector's budget, what shards can merge) is said by `millrace config show` in the pod, before anything serves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, is_dataclass
from typing import Any, Literal, get_args, get_origin

import msgspec
from declarations import INFINITY, Key, Range, keys
from reference_pages import learner_like, record_of

from millrace.learners.table import LEARNERS
from millrace.services.config.config import NEEDS, SPELLINGS, PipelineConfig
from millrace.streams.schema import ZONE

Schema = dict[str, Any]
SERVED = {kind: algorithm for kind, algorithm in LEARNERS.items() if not algorithm.distils}  # `millrace up` serves no others

LARGEST = 2**53  # Helm's numbers are float64: a larger whole one would arrive as another
DNS_LABEL = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SCALARS: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    str: {"type": "string"},
    int: {"type": "integer", "minimum": -LARGEST, "maximum": LARGEST},
    float: {"type": "number"},
}
LENGTHS = {"image": [0, 3]}  # of a list whose comment cannot say it
PATTERNS = {  # of texts, likewise
    "bootstrap": r"^( *[^, ]+:[0-9]+ *(, *[^, ]+:[0-9]+ *)*)?$",
    "registry": "^(https?://.*)?$",
    "zone": f"^({ZONE.pattern})$",
}


def pipeline_schema() -> dict[str, Schema]:
    """The definitions of a pipeline's tables, under ``pipeline`` and what it refers to."""
    pipeline = table(PipelineConfig)
    pipeline["properties"]["name"] |= {"pattern": DNS_LABEL, "maxLength": 52}  # objects of the cluster are named by it
    pipeline["properties"]["learner"] = learner()
    del pipeline["properties"]["llm"]  # the image has no vLLM, which would answer
    pipeline["properties"]["fields"] |= {"minItems": 1}
    pipeline["allOf"] = [*CONDITIONS]
    fields = pipeline["properties"]["fields"]["items"]
    del fields["required"]
    fields["allOf"] = list(_field_conditions())
    return {"pipeline": pipeline} | {f"learner-{kind}": table_of_kind(kind) for kind in SERVED}


def table(record: type[Any], like: type[Any] | None = None) -> Schema:
    """A record as a closed object."""
    declared = keys(record, like)
    needed = [key.name for key in declared if key.default is MISSING]
    described = {key.name: _described(key) for key in declared}
    closed: Schema = {"type": "object", "additionalProperties": False, "properties": described}
    return closed | ({"required": needed} if needed else {})


def learner() -> Schema:
    """The table of the learner: which keys it has depends on its kind."""
    kinds: Schema = {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": list(SERVED)}}}
    choice: Any = True
    for kind in reversed(SERVED):
        choice = {"if": _where(kind=kind), "then": {"$ref": f"#/$defs/learner-{kind}"}, "else": choice}
    return kinds | choice


def table_of_kind(kind: str) -> Schema:
    """The keys of one kind of learner, also in their newer spelling."""
    config = LEARNERS[kind].config
    closed = table(config, learner_like(config))
    closed["properties"] = {"kind": {"const": kind}} | closed["properties"]
    closed["properties"] |= {new: closed["properties"][old] for new, old in SPELLINGS.items() if old in closed["properties"]}
    return closed


def _described(key: Key) -> Schema:
    meaning = key.meaning[:1].upper() + key.meaning[1:]
    schema = _ranged(schema_of(key.type, key.name), key) | ({"pattern": PATTERNS[key.name]} if key.name in PATTERNS else {})
    default = (
        {} if key.default in (MISSING, None) or is_dataclass(key.default) else {"default": msgspec.to_builtins(key.default)}
    )
    return schema | ({"description": f"{meaning}."} if meaning else {}) | default


def schema_of(kind: Any, name: str = "") -> Schema:
    """What may stand where a record has this type; nothing is never written, for it is the key left out."""
    if kind in SCALARS:
        return dict(SCALARS[kind])
    if (record := record_of(kind)) is not None and get_origin(kind) is not tuple:
        return table(record)
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return _list_of(get_args(kind), name)
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": schema_of(get_args(kind)[1])}
    return _one_of([member for member in get_args(kind) if member is not type(None)])


def _one_of(members: list[Any]) -> Schema:
    """A union: without a table or a list in it one choice of scalars, for a shorter message."""
    if len(members) == 1:
        return schema_of(members[0])
    schemas = [schema_of(member) for member in members]
    if all(member in SCALARS for member in members):
        names = [schema["type"] for schema in schemas]
        return {"type": [name for name in names if name != "integer" or "number" not in names]}  # a number may be whole
    return {"anyOf": schemas}


def _list_of(arguments: tuple[Any, ...], name: str) -> Schema:
    items = {"type": "array", "items": schema_of(arguments[0])}
    if Ellipsis not in arguments:
        return items | {"minItems": len(arguments), "maxItems": len(arguments)}
    if name in LENGTHS:
        return items | {"anyOf": [{"minItems": length, "maxItems": length} for length in LENGTHS[name]]}
    return items


def _ranged(schema: Schema, key: Key) -> Schema:
    """With the range, or the words, that a declaration allows."""
    if key.allowed is None:
        return schema
    if not isinstance(key.allowed, Range):
        words = {"enum": list(key.allowed)}
        return words if schema.get("type") == "string" else schema
    if schema.get("type") == "array":
        return schema | {"items": schema["items"] | _bounds(key.allowed)}
    bounds = _bounds(key.allowed)
    return {name: value for name, value in schema.items() if name != "maximum" or "exclusiveMaximum" not in bounds} | bounds


def _bounds(allowed: Range) -> Schema:
    low = {"minimum" if allowed.ends[0] == "[" else "exclusiveMinimum": _plain(allowed.low)}
    high = {"maximum" if allowed.ends[1] == "]" else "exclusiveMaximum": _plain(allowed.high)}
    return (low if allowed.low > -INFINITY else {}) | (high if allowed.high < INFINITY else {})


def _plain(number: float) -> float:
    return int(number) if abs(number) <= LARGEST and number == int(number) else number


def _where(**settings: Any) -> Schema:
    """An object that says just this."""
    return {"properties": {key: {"const": value} for key, value in settings.items()}, "required": list(settings)}


def _without(names: Iterable[str]) -> Schema:
    return {"properties": dict.fromkeys(names, False)}


def _field_conditions() -> Iterable[Schema]:
    """Which keys go with which type of a field."""
    image, slots, time = ("backbone", "shape", "features", "sha256"), ("categories", "max"), ("unit", "zone")
    numbers = ("low", "high", "outside", "scaled")
    yield {"if": _where(type="categorical"), "then": _without((*image, *time, *numbers, "size", "center", "scale"))}
    yield {"if": _where(type="categorical"), "then": {"required": ["categories"]}}
    yield {"anyOf": [{"required": ["name"]}, {"required": ["of", "as", "over"]}]}
    yield {"if": {"required": ["of"]}, "then": _without(("type", "size", "low", "high"))}
    yield {"if": _where(type="time"), "then": _without((*image, *slots, "size"))}
    yield {"if": _where(type="image"), "then": _without((*slots, *time, *numbers, "size", "missing"))}
    yield {"if": _where(type="image"), "then": {"required": ["backbone", "shape", "features"]}}
    numeric = {"anyOf": [_where(type="numeric"), {"not": {"required": ["type"]}}]}
    yield {"if": numeric, "then": _without((*image, *slots, *time))}
    yield {"if": {"anyOf": [_where(categories=word) for word in ("grow", "hash")]}, "then": {"required": ["max"]}}


_KAFKA = {"properties": {"log": _where(kind="kafka")}, "required": ["log"]}
_BOOTSTRAP = {"properties": {"bootstrap": {"minLength": 1}}, "required": ["bootstrap"]}
_RECORDED = {
    "properties": {"serving": {"properties": {"record": {"enum": ["after-reply", "before-reply"]}}, "required": ["record"]}}
}
_SHARDS = {"properties": {"shards": {"minimum": 2}}, "required": ["shards"]}
_MERGED = {"memory": False, "drift": {"properties": {"act": {"const": "version"}}}}


def _kinds(able: Iterable[str]) -> Schema:
    return {"learner": {"properties": {"kind": {"enum": list(able)}}}}


def _acts() -> Iterable[Schema]:
    """What may follow an alarm, of learners that can do it."""
    for act, ability in NEEDS.items():
        able = (kind for kind, algorithm in SERVED.items() if ability in algorithm.abilities)
        asked = {"properties": {"drift": _where(act=act)}, "required": ["drift"]}
        yield {"if": asked, "then": {"properties": _kinds(able)}}


_MERGEABLE = (kind for kind, algorithm in SERVED.items() if algorithm.merge is not None)
CONDITIONS: tuple[Schema, ...] = (  # of one table upon another
    *_acts(),
    {"if": _SHARDS, "then": {"properties": _MERGED | _kinds(_MERGEABLE)}},
    {"if": _KAFKA, "then": {"properties": {"log": {"properties": {"kafka": _BOOTSTRAP}, "required": ["kafka"]}}}},
    {"if": _RECORDED | {"required": ["serving"]}, "then": {"required": ["labels"]}},
    {"if": {"properties": {"label": _where(type="number")}}, "then": _without(["evaluate"])},
)
