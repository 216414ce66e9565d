"""The mirror of a pipeline's versions in MLflow: what is to be there follows from journals and ledger, whoever looks.

Nothing that learns or serves waits for it or reads from it. What was written last is kept beside the ledger. So an alias
that somebody moved there by hand is known from one that the ledger moved. Lost, it is made anew and the ledger wins.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from millrace.learners.errors import MillraceError
from millrace.services.decisions.decide import Naming, decide, plan_promotion
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.services.registry.export import write
from millrace.services.registry.lineage import PREFIX, Genealogy, Listed, metrics, verified_tags
from millrace.streams.errors import DamageError, StorageError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.ledger import Ledger
from millrace.streams.sharding import WHOLE, shard_of
from millrace.streams.stream import Stream

log = logging.getLogger("millrace")

ALIASES = ("champion", "challenger", "last-good")  # ours there, whether the ledger has them or not

Named = str | None  # a version that an alias names


class ModelRegistry(Protocol):
    """One registered model, wherever it is. Raises: MirrorError from everything."""

    def versions(self) -> list[Listed]:
        """What stands there, oldest first."""

    def aliases(self) -> dict[str, str]:
        """Alias -> number."""

    def register(self, folder: Path, tags: Mapping[str, str], metrics: Mapping[str, float]) -> str:
        """Upload an exported folder and register it; its number."""

    def tag(self, number: str, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""

    def name(self, alias: str, number: str | None) -> None:
        """Let an alias name a model version, or none."""


class MirrorState(msgspec.Struct):
    """What this mirror wrote last, and when all was as it should be."""

    aliases: dict[str, list[Named]] = {}  # two while one is being written: either may be there then
    at_ms: int = 0
    versions: int = 0
    said: str = ""  # what went wrong since
    of: str = ""  # the server and the model that this is of; empty: an earlier release wrote it


def mirror_state(instance: Instance) -> MirrorState:
    """As the pipeline's folder has it; a new one where it has none or a broken one, or one of another server or model."""
    try:
        kept = msgspec.json.decode(_path(instance).read_bytes(), type=MirrorState)
    except (OSError, msgspec.DecodeError):
        kept = MirrorState()
    pipeline = instance.loaded.pipeline
    of = f"{pipeline.mlflow.model or pipeline.name} at {pipeline.mlflow.uri}"
    return msgspec.structs.replace(kept, of=of) if kept.of in ("", of) else MirrorState(of=of)


def describe(instance: Instance) -> dict[str, str]:
    """For `millrace status`: how many versions are in MLflow, as of when, and what went wrong since."""
    uri, mirrored = instance.loaded.pipeline.mlflow.uri, mirror_state(instance)
    if not uri:
        return {}
    as_of = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mirrored.at_ms / 1000)) if mirrored.at_ms else "never yet"
    return {"mirror": f"{mirrored.versions} versions at {uri}, as of {as_of}" + (f"; {mirrored.said}" if mirrored.said else "")}


def keep(instance: Instance, mirrored: MirrorState) -> None:
    """Put it into the pipeline's folder. Raises: StorageError."""
    path = _path(instance)
    try:
        draft = path.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(mirrored))
        draft.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}.") from error


def _path(instance: Instance) -> Path:
    return instance.folder / "mlflow.json"


def ours(ledger_version: Named, mirror_version: Named, last: list[Named] | None) -> bool:
    """Whether an alias that differs is for us to set: not where it alone was moved there since we wrote it.

    >>> ours("main.9", "main.3", ["main.3"]), ours("main.3", "main.9", ["main.3"]), ours("main.7", "main.9", ["main.3"])
    (True, False, True)
    """
    return last is None or mirror_version in last or ledger_version not in last


class Mirror:
    """One pipeline's."""

    def __init__(self, instance: Instance, registry: ModelRegistry) -> None:
        self._instance = instance
        self._registry = registry
        self._archive = Archive(instance)
        self._genealogy = Genealogy(instance)
        self._ledger = Ledger(instance.ledger_name)
        self._stream: Stream | None = None
        self._broken: set[str] = set()  # versions whose parts are not whole: said once
        self._left_out = ""  # what the version mirrored last is without: said once
        self.kept = mirror_state(instance)

    def once(self) -> MirrorState:
        """Make everything there as it is here.

        1. register versions that are not there, oldest first
        2. set the tags that have changed
        3. take in the aliases that were moved there by hand, where the pipeline adopts them
        4. set the aliases that differ

        Raises: MirrorError; what was done stays done.
        """
        self._follow()
        numbers = self._register()
        self._aliases(numbers)
        self.kept.at_ms, self.kept.versions, self.kept.said = time.time_ns() // 1_000_000, len(numbers), ""
        keep(self._instance, self.kept)
        return self.kept

    def failed(self, error: MillraceError) -> None:
        """Keep what went wrong, for `millrace status`."""
        self.kept.said = str(error)
        try:
            keep(self._instance, self.kept)
        except StorageError as full:
            log.warning("%s", full)

    def _follow(self) -> None:
        self._stream = self._stream or self._instance.ledger_stream()
        self._ledger.follow(self._stream)

    def _register(self) -> dict[str, str]:
        """Our versions that are there -> their numbers."""
        registered = {listed.names: listed for listed in reversed(self._registry.versions())}
        numbers = dict[str, str]()
        for mark in self._marks():
            version = str(mark.version)
            listed_version = registered.get((version, mark.state_sha256))
            tags = verified_tags(self._ledger, version)
            if listed_version is None:
                number = self._upload(mark, tags)
            else:
                number = listed_version.number
                if changed := {name: value for name, value in tags.items() if listed_version.tags.get(name) != value}:
                    self._registry.tag(number, changed)
            numbers |= {} if number is None else {version: number}
        return numbers

    def _marks(self) -> list[Mark]:
        """Of every version that is kept, branch by branch; shards are not served, so their merges alone."""
        branches = [name for name in self._instance.branches() if shard_of(name) == WHOLE]
        marks = [mark for branch in branches for mark in self._archive.marks(branch)]
        return [mark for mark in marks if mark.version is not None and mark.version not in self._ledger.released]

    def _upload(self, mark: Mark, tags: dict[str, str]) -> str | None:
        """Its number there; None where its parts are not whole."""
        version = str(mark.version)
        try:
            with tempfile.TemporaryDirectory(prefix="millrace-") as scratch:
                manifest = write(self._instance, self._archive, mark, Path(scratch))
                lineage_tags = self._genealogy.tags(mark) | {PREFIX + "weights_sha256": manifest.weights_sha256}
                number = self._registry.register(Path(scratch), lineage_tags | tags, metrics(self._instance, mark))
                self._tell_left_out(manifest.left_out_words)
        except DamageError as error:
            if version not in self._broken:
                log.warning("Version %s is not mirrored: %s", version, error)
            self._broken.add(version)
            return None
        log.info("version %s is version %s in MLflow", version, number)
        return number

    def _tell_left_out(self, left_out: str) -> None:
        if left_out and left_out != self._left_out:
            log.warning("Versions are mirrored without %s.", left_out)
        self._left_out = left_out

    def _aliases(self, numbers: Mapping[str, str]) -> None:
        versions = {number: version for version, number in numbers.items()}
        mirror_versions = {
            alias: versions.get(number, f"number {number}") for alias, number in self._registry.aliases().items()
        }
        for alias in sorted({*ALIASES, *self._ledger.aliases, *self.kept.aliases}):
            self._alias(alias, mirror_versions.get(alias), numbers)

    def _alias(self, alias: str, mirror_version: Named, numbers: Mapping[str, str]) -> None:
        """Bring one alias and the ledger together; where both were moved the ledger wins."""
        ledger_version, last = self._ledger.aliases.get(alias), self._last(alias)
        if (
            mirror_version != ledger_version
            and not ours(ledger_version, mirror_version, last)
            and self._adopted(alias, ledger_version, mirror_version, numbers)
        ):
            ledger_version = mirror_version
        if ledger_version is not None and ledger_version not in numbers:
            return  # not there to be named; its parts are not whole
        if mirror_version != ledger_version:
            self._keep(alias, [*(last or []), ledger_version])  # either may be there if this is cut off
            self._registry.name(alias, None if ledger_version is None else numbers[ledger_version])
        if last != [ledger_version]:
            self._keep(alias, [ledger_version])

    def _last(self, alias: str) -> list[Named] | None:
        """What we wrote last; None where that is not known any more."""
        return self.kept.aliases.get(alias, [None] if self.kept.at_ms else None)

    def _keep(self, alias: str, names: list[Named]) -> None:
        self.kept.aliases[alias] = names
        keep(self._instance, self.kept)

    def _adopted(self, alias: str, ledger_version: Named, mirror_version: Named, numbers: Mapping[str, str]) -> bool:
        """Whether the ledger follows a hand in MLflow: where the pipeline says so, and to a sound version of ours."""
        if self._instance.loaded.pipeline.mlflow.moved_by_hand != "adopt" or mirror_version not in numbers:
            log.warning(
                "Alias %s was moved by hand in MLflow, to %s; it is set back to %s.", alias, mirror_version, ledger_version
            )
            return False
        try:
            plan = plan_promotion(self._instance, alias, str(mirror_version))
            decide(self._instance, Naming(alias, ledger_version, plan.to), "moved by hand in MLflow")
        except MillraceError as error:
            log.warning(
                "Alias %s was moved by hand in MLflow, to %s, and that is not adopted: %s", alias, mirror_version, error
            )
            return False
        log.info("alias %s was moved by hand in MLflow, to %s: the ledger has it now", alias, mirror_version)
        return True
