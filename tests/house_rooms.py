"""Which sub-room may import which: the table, and what breaks it. ``docs/design/walk.md`` shows the same table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from house_rules import ROOMS, Module, imports, modules

MAX_FILES = 20  # of one sub-room, beside its __init__.py

# Place -> what its files import from elsewhere. A place is a sub-room, the files at a room's root, or one of EXCEPTIONS.
# A new sub-room adds its line here and runs `make reference`, which writes the table into docs/design/walk.md.
ARROWS: Mapping[str, str] = {
    "learners": "",
    "learners/drift": "learners",
    "learners/linear": "learners",
    "streams": "learners",
    "learners/analytic": "learners learners/linear",
    "learners/memory": "learners learners/linear",
    "learners/replay": "learners learners/linear",
    "learners/river_adapter": "learners learners/linear",
    "services": "learners streams",
    "streams/journal": "streams",
    "streams/kafka": "learners streams",
    "streams/sqlite": "learners streams",
    "learners/draft": "learners learners/linear learners/replay",
    "learners/evaluation": "learners learners/draft",
    "learners/table": (
        "learners learners/analytic learners/draft learners/linear learners/memory learners/replay learners/river_adapter"
    ),
    "streams/formats": "learners learners/draft learners/linear streams",
    "streams/features": "learners streams streams/formats",
    "streams/labels": "learners learners/memory streams streams/formats",
    "streams/entity": "learners streams streams/formats streams/labels",
    "streams/state": (
        "learners learners/drift learners/evaluation streams streams/entity streams/features streams/formats streams/journal "
        "streams/labels"
    ),
    "streams/branch": (
        "learners learners/drift streams streams/entity streams/features streams/formats streams/journal streams/labels "
        "streams/state"
    ),
    "services/python": "learners streams streams/branch streams/formats streams/labels",
    "streams/worker": "streams streams/branch streams/formats streams/journal streams/labels streams/state",
    "services/config": (
        "learners learners/draft learners/drift learners/memory learners/table streams streams/entity streams/features "
        "streams/kafka streams/labels streams/state streams/worker"
    ),
    "services/pipeline": (
        "learners learners/table services services/config streams streams/branch streams/entity streams/features "
        "streams/formats streams/journal streams/kafka streams/labels streams/sqlite"
    ),
    "services/data": (
        "learners services services/config services/pipeline streams streams/branch streams/formats streams/journal"
    ),
    "services/decisions": (
        "learners learners/drift services services/config services/pipeline streams streams/branch streams/journal "
        "streams/state"
    ),
    "services/protocol": "learners services services/config services/pipeline streams streams/formats streams/labels",
    "services/endpoint": "learners services services/config services/pipeline services/protocol streams streams/labels",
    "services/proof": (
        "learners learners/table services services/decisions services/pipeline streams streams/branch streams/journal"
    ),
    "services/registry": (
        "learners learners/draft learners/table services services/config services/decisions services/pipeline services/proof "
        "streams streams/branch streams/features streams/journal"
    ),
    "services/training": (
        "learners learners/drift services services/decisions services/pipeline services/proof streams streams/branch "
        "streams/journal streams/state streams/worker"
    ),
    "services/metrics": (
        "learners services/decisions services/pipeline services/protocol services/training streams/branch streams/journal"
    ),
    "services/pyfunc": "learners services/pipeline services/python services/registry",
    "services/replay": (
        "learners services services/data services/decisions services/pipeline services/training streams streams/branch "
        "streams/formats streams/journal streams/labels streams/state streams/worker"
    ),
    "services/serving": (
        "learners services services/config services/endpoint services/metrics services/pipeline services/protocol "
        "services/training streams streams/branch streams/journal"
    ),
    "services/api": (
        "learners services services/config services/data services/decisions services/pipeline services/proof services/python "
        "services/registry services/serving services/training streams streams/labels"
    ),
    "services/demo": (
        "learners learners/analytic learners/drift learners/table services services/config services/data services/endpoint "
        "services/pipeline services/protocol services/serving streams streams/branch streams/features streams/formats "
        "streams/journal streams/labels streams/state"
    ),
    "services/llm": (
        "learners learners/draft learners/table services services/config services/endpoint services/metrics services/pipeline "
        "services/protocol services/serving services/training streams streams/journal"
    ),
    "services/cli": (
        "learners services services/config services/data services/decisions services/llm services/pipeline services/proof "
        "services/registry services/replay services/serving services/training streams streams/branch streams/journal"
    ),
}

# Files at a room's root that import sub-rooms of it, and why.
EXCEPTIONS: Mapping[str, str] = {
    "learners/table": "the list of learners names each of them",
    "learners/river_adapter": "river's models are neither linear, analytic nor replay",
    "services/pyfunc": "stored models hold this name",
    "services/api": "the public names",
}

# Every other file at a room's root; what it holds is needed all over the room and above.
ROOTS: Mapping[str, frozenset[str]] = {
    "learners": frozenset({"__init__", "declaration", "distribution", "errors", "protocol"}),
    "streams": frozenset(
        {"__init__", "checksummed", "errors", "hashing", "parts", "records", "schema", "sharding", "source", "stream"}
    ),
    "services": frozenset({"__init__", "errors", "moments", "printable", "processes", "user"}),
}

# What no line of the table may ever say: from, to, and what would be lost.
NEVER: tuple[tuple[str, str, str], ...] = (
    ("streams/kafka", "streams/sqlite", "each log works without the other"),
    ("streams/sqlite", "streams/kafka", "each log works without the other"),
    ("streams/journal", "streams/formats", "a journal is read without knowing what records hold"),
    ("streams/journal", "streams/labels", "a journal is read without knowing what records hold"),
    ("streams/journal", "streams/state", "a journal is read without folding it"),
    *(
        (place, target, "an endpoint answers; it neither learns nor decides")
        for place in ("services/endpoint", "services/protocol")
        for target in ("services/training", "services/replay", "services/decisions", "services/registry")
    ),
    ("services/decisions", "services/serving", "a rollback needs neither Ray nor a trainer"),
    ("services/decisions", "services/training", "a rollback needs neither Ray nor a trainer"),
    *((place, "services/demo", "a demo is called by nobody") for place in ARROWS if place != "services/demo"),
)


def place_of(path: str) -> str:
    """Where a file stands, as the table calls it.

    >>> place_of("streams/kafka/log.py"), place_of("streams/parts.py"), place_of("learners/table.py")
    ('streams/kafka', 'streams', 'learners/table')
    """
    room, *rest = path.removesuffix(".py").split("/")
    if len(rest) > 1:
        return f"{room}/{rest[0]}"
    return f"{room}/{rest[0]}" if rest and f"{room}/{rest[0]}" in EXCEPTIONS else room


@cache
def known_places() -> Mapping[str, str]:
    """Every module of ours by the name that it is imported by, with its place."""
    return {module.name: place_of(module.path) for module in modules(*ROOMS)}


def target_of(name: str) -> str | None:
    """The place that an imported name comes from; None where it is none of ours."""
    parts = name.split(".")
    if parts[0] != "millrace" or len(parts) == 1:
        return None
    while len(parts) > 1:
        if (place := known_places().get(".".join(parts))) is not None:
            return place
        sub = "/".join(parts[1:3])
        if len(parts) >= 3 and (sub in ARROWS or sub in EXCEPTIONS):
            return sub
        parts.pop()
    return name.split(".")[1]


def arrows_outside(module: Module) -> Iterator[str]:
    """Each import that the table has no arrow for, and each by a bare folder name."""
    place = place_of(module.path)
    allowed = {place, *ARROWS.get(place, "").split()}
    for node, name in imports(module):
        if name.split(".")[0] in ROOMS:
            yield module.at(node, f"imports {name} without `millrace.`")
        elif (target := target_of(name)) is not None and target not in allowed:
            yield module.at(
                node, f"imports {name}: {place} may import {', '.join(sorted(allowed - {place})) or 'nothing'}; see ARROWS"
            )


def misplaced(tree: Iterable[Module]) -> Iterator[str]:
    """Files in no place of the table, and sub-rooms with too many files or with code in their ``__init__.py``."""
    counts: dict[str, int] = {}
    for module in tree:
        place, name = place_of(module.path), module.path.rpartition("/")[2].removesuffix(".py")
        if place in ROOTS and name not in ROOTS[place]:
            yield f"{module.path}:1 stands at the root of {place}; put it into a sub-room (docs/design/walk.md)"
        elif place not in ROOTS and place not in ARROWS:
            yield f"{module.path}:1 stands in {place}, of which ARROWS says nothing; add its line"
        if name == "__init__" and place not in {*ROOTS, "services/cli"} and len(module.tree.body) > 1:
            yield f"{module.path}:1 has more than a sentence"
        counts[place] = counts.get(place, 0) + (name != "__init__")
    yield from (f"{place} has {count} files; part it" for place, count in counts.items() if count > MAX_FILES)


def tests_imported(tree: Iterable[Module]) -> Iterator[str]:
    """Each import of a test module: what several tests share stands in a ``support`` folder."""
    for module in tree:
        for node, name in imports(module):
            if any(part.startswith("test_") for part in name.split(".")[:-1]) or name.startswith("test_"):
                yield module.at(node, f"imports {name}; put what both use into the support folder of its room")


def used_arrows(tree: Iterable[Module]) -> dict[str, set[str]]:
    """The arrows that there are."""
    arrows: dict[str, set[str]] = {}
    for module in tree:
        place = place_of(module.path)
        targets = {target for _, name in imports(module) if (target := target_of(name)) is not None}
        arrows.setdefault(place, set()).update(targets - {place})
    return arrows


def floors(arrows: Mapping[str, str]) -> dict[str, int]:
    """The floor of each place: one above the highest that it imports. Raises: RecursionError where arrows form a circle."""

    @cache
    def floor(place: str) -> int:
        return 1 + max((floor(target) for target in arrows[place].split()), default=0)

    return {place: floor(place) for place in arrows}


def arrows_between_rooms_that_rise(arrows: Mapping[str, str]) -> Iterator[str]:
    """Arrows from a room to one above it: the floors, which arrows themselves make, know nothing of rooms."""
    for place, targets in arrows.items():
        yield from (f"{place} -> {target}" for target in targets.split() if _rank(target) > _rank(place))


def _rank(place: str) -> int:
    return ROOMS.index(place.partition("/")[0])


def shown(arrows: Mapping[str, str]) -> str:
    """The table as the documents show it: floor, place, what it imports."""
    by_floor = sorted((floor, place) for place, floor in floors(arrows).items())
    width = max(len(place) for place in arrows)
    return "\n".join(f"{floor:2} {place:{width}} -> {', '.join(arrows[place].split()) or '-'}" for floor, place in by_floor)
