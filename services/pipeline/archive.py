"""Marked states of a pipeline, read from journal and store."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace

import msgspec

from millrace.learners.errors import ConfigError, MillraceError
from millrace.learners.table import algorithm_of
from millrace.services.pipeline.bundle import Bundle, Parts, identity_of, open_parts
from millrace.services.pipeline.ids import no_version, state_of
from millrace.services.pipeline.instance import Instance, require_branch
from millrace.streams.branch.between import state_between
from millrace.streams.branch.branch import load_part
from millrace.streams.branch.host import use_threads
from millrace.streams.entity.entities import WINDOWS, answering_of
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Fork, Mark
from millrace.streams.journal.journal import Summary, empty_summary, extend
from millrace.streams.journal.segments import Journal
from millrace.streams.parts import sha256
from millrace.streams.schema import Schema

log = logging.getLogger("millrace")


NEEDED = ("serve", "features", "counts")  # parts of a checkpoint


def with_backbones(begun_with: Schema, present: Schema, branch: str) -> Schema:
    """Fields as they were stored, with the places of their networks, which ``present`` has by their hashes.

    Raises: ConfigError where it does not have one.
    """
    places = {field.sha256: field.backbone for field in present.fields if field.type == "image"}
    for image in (image for image in begun_with.fields if image.type == "image" and image.sha256 not in places):
        raise ConfigError(
            f"Branch {branch} was begun with network {image.sha256[:12]} for its field {image.name}, and the pipeline file "
            "names another. Use the file of then for its versions."
        )
    fields = (replace(field, backbone=places[field.sha256]) if field.type == "image" else field for field in begun_with.fields)
    return replace(begun_with, fields=tuple(fields))


@dataclass(slots=True)
class Archive:
    """Marked states, read from journal and store."""

    instance: Instance
    _summaries: dict[str, Summary] = field(default_factory=dict)
    _journals: dict[str, Journal] = field(default_factory=dict)
    _schemas: dict[str, Schema] = field(default_factory=dict)
    _between: dict[str, Mark] = field(default_factory=dict)

    def version(self, version: str) -> Bundle:
        """Raises: MillraceError where there is no such version, DamageError where its parts are not whole."""
        return self.bundle(self.mark(version))

    def check(self, version: str) -> None:
        """Read a version, and open it where that imports nothing that takes seconds or may be missing (torch).

        What is not opened here is opened by the replicas, which go on with what they hold where it cannot be.
        Raises: as ``version``.
        """
        parts = self.parts(self.mark(version))
        if not algorithm_of(parts.kind).needs:
            open_parts(parts, self.schema(version.rpartition(".")[0]))

    def mark(self, version: str) -> Mark:
        """The mark of a version. Raises: MillraceError where there is none."""
        found = self._version(version)
        if found is None:
            branch, branches = version.split(".")[0], self.instance.branches()
            raise MillraceError(no_version(version, branches, self.summary(branch) if branch in branches else None))
        return found

    def state(self, name: str) -> Mark:
        """The mark of a version; else of a state between two, ``BRANCH.SEQ`` as an answer names it, folded again and stored.

        Raises: MillraceError where there is no such state; OffsetsGoneError where the log no longer has what it is made of;
        DamageError.
        """
        found = self._version(name) or self._between.get(name)
        branch, seq = state_of(name)
        if found is None and branch and self.instance.has_branch(branch) and seq <= self.summary(branch).end.seq:
            self.instance.refuse_shards("A state between versions")
            backends = self.instance.backends(branch)
            try:
                found = state_between(self.instance.fold_spec, backends, self.summary(branch), seq)
            except ConfigError as error:
                raise ConfigError(
                    f"{name} lies between versions, and only the configuration that it was learned with can rebuild it. "
                    f"Name the version before it (`millrace versions`), or set back what the file says otherwise. {error}"
                ) from error
            self._between[name] = found
            use_threads(self.instance.loaded.pipeline.threads)
        return self.mark(name) if found is None else found

    def _version(self, name: str) -> Mark | None:
        branch = name.rpartition(".")[0]
        marks = self.marks(branch) if branch and self.instance.has_branch(branch) else []
        return next((mark for mark in marks if mark.version == name), None)

    def newest(self, branch: str) -> Bundle | None:
        """The newest marked state whose parts are whole, or None."""
        if not self.instance.has_branch(branch):
            return None
        for mark in reversed(self.marks(branch)):
            if mark.checkpoint is None:
                continue
            try:
                return self.bundle(mark)
            except DamageError as error:
                log.warning("%s; trying the checkpoint before", error)
        return None

    def marks(self, branch: str) -> list[Mark]:
        """Of a branch, oldest first. Raises: MillraceError where there is no such branch."""
        return self.summary(branch).marks

    def summary(self, branch: str) -> Summary:
        """Of a branch's journal, as far as it goes by now. Raises: MillraceError where there is no such branch."""
        if branch not in self._journals:
            require_branch(self.instance, branch)
            self._journals[branch] = self.instance.journal(branch)
        if branch not in self._summaries:
            self._summaries[branch] = empty_summary(self._journals[branch])
        extend(self._summaries[branch], self._journals[branch], branch)
        return self._summaries[branch]

    def so_far(self, branch: str) -> Summary:
        """As ``summary``; empty where there is no such branch yet."""
        return self.summary(branch) if self.instance.has_branch(branch) else Summary()

    def bundle(self, mark: Mark) -> Bundle:
        """The state that a mark names. Raises: DamageError."""
        return open_parts(self.parts(mark), self.schema(mark.branch))

    def schema(self, branch: str) -> Schema:
        """The fields and the label that a branch was begun with, whatever the pipeline file says by now.

        Raises: MillraceError where there is no such branch; DamageError where they cannot be read; ConfigError where they have
        an image whose network the pipeline file no longer names.
        """
        if branch not in self._schemas:
            self._schemas[branch] = self._begun_with(branch)
        return self._schemas[branch]

    def _begun_with(self, branch: str) -> Schema:
        present, fork = self.instance.loaded.pipeline.schema, self._fork(branch)
        if fork.features_sha256 == sha256(present.declared):
            return present
        try:
            begun_with = msgspec.json.decode(self.instance.store().get(branch, fork.features_sha256), type=Schema)
        except (DamageError, msgspec.DecodeError) as error:
            raise DamageError(
                f"The fields that branch {branch} was begun with cannot be read ({error}), and the pipeline file has others. "
                "Use the file of then, or restore the store from a copy."
            ) from error
        if sha256(begun_with.declared) != fork.features_sha256:
            raise DamageError(
                f"The fields that branch {branch} was begun with mean other ones to this release. Use the one that wrote them."
            )
        return with_backbones(begun_with, present, branch)

    def _fork(self, branch: str) -> Fork:
        fork = self.summary(branch).fork
        if fork is None:
            raise MillraceError(f"Branch {branch} has no first entry. Restore its journal from a copy.")
        return fork

    def parts(self, mark: Mark) -> Parts:
        """What answering needs of the state that a mark names. Raises: DamageError."""
        state_parts = {name: load_part(self.instance.store(), mark, name) for name in NEEDED}
        as_of_ms = min(int(state_parts["counts"]["clock_ms"]), time.time_ns() // 1_000_000)
        windows = None if self.schema(mark.branch).entity is None else load_part(self.instance.store(), mark, WINDOWS)
        kind, needed = self._fork(mark.branch).learner, (state_parts["features"], state_parts["serve"])
        return Parts(identity_of(mark), as_of_ms, kind, *needed, None if windows is None else answering_of(windows))
