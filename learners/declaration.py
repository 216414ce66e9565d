"""What a branch is begun with, written down so that keys which come later part no begun branch from its file.

A branch keeps the sha256 of what its pipeline file declared, and refuses another declaration. Whoever adds a key to a record
that is declared (``Field``, ``Label``, ``Schema``, ``LabelRules``, ``BatchConfig``, ``DriftConfig``, ``HeldOutConfig``, a
learner's config, ``Spec``) writes its default with ``later``::

    half_life_ms: int = later(0)  # 0: as before there was this key

and states three things by it. At that default everything is learned as it was before the key was there, byte for byte. A
declaration leaves the key out at that default. The default never changes again. A key that cannot promise this needs a new
revision of the learner or of the format instead. ``tests/recorded/declared.json`` lists the keys that are always written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, TypeVar, cast

T = TypeVar("T")
LATER = "later"  # in a dataclass field's metadata


def later(default: T) -> T:
    """The default of a key that records of earlier releases do not have: a value, or what ``dataclasses.field`` made with one.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Config:
    ...     gamma: float = 1.0
    ...     half_life_ms: int = later(0)
    >>> declared(Config()), declared(Config(half_life_ms=5))
    ({'gamma': 1.0}, {'gamma': 1.0, 'half_life_ms': 5})
    """
    if isinstance(default, Field):
        return cast(T, field(default=default.default, metadata={**default.metadata, LATER: True}))
    return field(default=default, metadata={LATER: True})


def declared(record: Any) -> dict[str, Any]:
    """A dataclass as plain values, nested ones too, without the later keys that are at their default."""
    values = {field.name: _plain(getattr(record, field.name)) for field in fields(record)}
    return declared_keys(type(record), values)


def declared_keys(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a record's keys that are plain already; keys that ``kind`` does not have stay."""
    defaults = {field.name: _plain(field.default) for field in fields(kind) if field.metadata.get(LATER)}
    return {key: value for key, value in values.items() if key not in defaults or _plain(value) != defaults[key]}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return declared(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
