"""What a pipeline file declares of fields and an entity, as one schema: what a record brings, and what windows give."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.streams.entity.past import needed
from millrace.streams.schema import LATEST_MS, Entity, Field, Label, Llm, Schema


def schema_of(
    fields: Sequence[Field], label: Label, weight: str | None, llm: Llm | None = None, entity: Entity | None = None
) -> Schema:
    """The schema of these declarations. The entity's key and time that are no fields of their own are read, and stand aside.

    Raises: ValueError where a field of the past cannot be made.
    """
    past = tuple(field for field in fields if field.of)
    if entity is None:
        if past:
            raise ValueError(f"fields: {past[0].name} is made of {past[0].of}'s past; say whose, with a table [entity]")
        return Schema(tuple(fields), label, weight, llm)
    brought = {field.name: field for field in fields if not field.of}
    _check_key_and_time(entity, brought)
    for field in past:
        _check_past(field, entity, brought, label)
    if not past:
        raise ValueError("entity: no field is made of its past; add [[fields]] with of and as, or leave the table out")
    aside = tuple(name for name in (entity.key, entity.time) if name and name not in brought)
    added = {
        entity.key: Field(entity.key, type="categorical", categories="hash", max=1),
        entity.time: Field(entity.time, type="time", unit="ms", missing="mean", low=-LATEST_MS, high=LATEST_MS),
    }
    return Schema((*brought.values(), *(added[name] for name in aside)), label, weight, llm, entity, past, aside)


def _check_key_and_time(entity: Entity, brought: dict[str, Field]) -> None:
    key, time = brought.get(entity.key), brought.get(entity.time)
    if key is not None and (key.type, key.missing) != ("categorical", "reject"):
        raise ValueError(
            f'entity.key = {entity.key!r}: as a field it must be type = "categorical" with missing = "reject", or be no field'
        )
    if time is not None and time.type != "time":
        raise ValueError(f'entity.time = {entity.time!r}: as a field it must be type = "time", or be no field')


def _check_past(field: Field, entity: Entity, brought: dict[str, Field], label: Label) -> None:
    source = brought.get(field.of)
    if field.of == label.name:
        raise ValueError(f"fields: {field.name}: of = {field.of!r} is the label; what is made of past labels is not there yet")
    if source is None or source.type != "numeric" or source.size != 1:
        raise ValueError(f"fields: {field.name}: of = {field.of!r} must be a field of one number that a row brings")
    if (events := needed(field)) > entity.window:
        raise ValueError(
            f'fields: {field.name}: over = {field.over} with as = "{field.as_}" needs {events} events, and entity.window = '
            f"{entity.window} are kept; lower it, or raise the window"
        )
