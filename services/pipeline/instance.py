"""One pipeline on this machine: its folder, its log, and the rooms put together over them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from millrace.learners.errors import BadInputError, ConfigError, MillraceError
from millrace.learners.table import algorithm_of
from millrace.services.config.config import Loaded
from millrace.services.config.kernels import AVX2, is_pinned, unpinned
from millrace.services.errors import BusyError
from millrace.services.pipeline.backends import Logs, logs_of
from millrace.services.pipeline.ids import no_branch
from millrace.streams.branch.branch import Backends, FoldSpec
from millrace.streams.branch.host import this_host
from millrace.streams.branch.read_order import Retraced
from millrace.streams.errors import DamageError, StorageError
from millrace.streams.formats.avro import Registry
from millrace.streams.formats.completions import CompletionCodec
from millrace.streams.formats.contents import Contents
from millrace.streams.journal.entries import Fork, Host
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.journal.ledger import Ledger
from millrace.streams.journal.retention import Retention
from millrace.streams.journal.segments import Journal
from millrace.streams.journal.store import FolderStore
from millrace.streams.labels.served import ServedCodec
from millrace.streams.records import split_tp
from millrace.streams.sharding import WHOLE, shard_branches, shard_of
from millrace.streams.source import Log, Source
from millrace.streams.stream import Stream

ENDPOINT = "default"  # what answers callers


@dataclass(frozen=True, slots=True)
class Instance:
    """A pipeline and the folder of its state: ``HOME/NAME``."""

    loaded: Loaded
    folder: Path

    @property
    def absolute(self) -> Instance:
        """The same, for processes that stand in another folder."""
        return Instance(replace(self.loaded, path=self.loaded.path.resolve()), self.folder.resolve())

    def words(self, *verb: str) -> list[str]:
        """The words of the command line that let another process do something with this pipeline, as it was given here."""
        absolute = self.absolute
        flags = [argument for flag in absolute.loaded.flags for argument in ("--set", flag)]
        return [*verb, str(absolute.loaded.path), "--home", str(absolute.folder.parent), *flags]

    @property
    def fold_spec(self) -> FoldSpec:
        """What its folds are made of."""
        pipeline, config = self.loaded.pipeline, self.loaded.learner_config
        schema = pipeline.schema
        algorithm = algorithm_of(pipeline.kind).ready()
        registry = Registry(pipeline.log.registry, self.folder / "schemas") if pipeline.log.registry else None
        contents = Contents(schema, pipeline.log.max_bytes, pipeline.log.max_batch_bytes, registry, pipeline.unknown)
        return FoldSpec(
            name=pipeline.name,
            schema=schema,
            codec=contents if pipeline.llm is None else CompletionCodec(pipeline.llm, pipeline.log.max_bytes),
            learner=pipeline.kind,
            make_learner=lambda: algorithm.learner(config, schema.width, pipeline.seed),
            scaling=algorithm.scaling(config) if pipeline.shards == 1 else "declared",
            batch_rows=pipeline.batch.rows,
            batch_wait_ms=pipeline.batch.wait_ms,
            seed=pipeline.seed,
            config=pipeline.declared,
            drift=pipeline.drift,
            held_out=pipeline.evaluate,
            labels=pipeline.labels,
            partitioner=None if pipeline.shards == 1 else self._logs.partitioner,
            served=None
            if pipeline.labels is None
            else ServedCodec(schema, pipeline.log.max_bytes, pipeline.served_topic, contents, pipeline.unknown),
        )

    @property
    def host(self) -> Host:
        """What the numerics of this process depend on.

        Raises: ConfigError where the pipeline pins kernels, and this process loaded others before it was opened.
        """
        pinned = self.loaded.pipeline.kernels == AVX2
        if pinned and not is_pinned():
            raise ConfigError(unpinned(self.loaded.path))
        through_python = algorithm_of(self.loaded.pipeline.kind).through_python
        return this_host(self.loaded.pipeline.threads, through_python, pinned)

    def shards(self, branch: str) -> list[str]:
        """The branches that learn for one: itself where the pipeline has one shard, or where it is one of several."""
        return shard_branches(branch, self.loaded.pipeline.shards if shard_of(branch) == WHOLE else 1)

    def refuse_shards(self, operation: str) -> None:
        """Raises: BadInputError where the pipeline has several shards, for which ``operation`` cannot be done."""
        if (count := self.loaded.pipeline.shards) > 1:
            raise BadInputError(
                f"{operation} is for pipelines of one shard, and this one has {count}. `millrace rollback` and `millrace "
                "serve` go back to any version; to learn otherwise, run the pipeline with shards = 1 as --branch NEW."
            )

    def refuse_completions(self, operation: str) -> None:
        """Raises: BadInputError where the pipeline is one of completions, for which ``operation`` is not there."""
        if self.loaded.pipeline.llm is not None:
            raise BadInputError(
                f"{operation} is for pipelines of rows, and this one learns a draft from completions in topic "
                f"{self.loaded.pipeline.topic}. `millrace run` learns them, and `millrace export` writes one for transformers."
            )

    def refuse_entities(self, operation: str) -> None:
        """Raises: BadInputError where rows are entities', for which ``operation`` is not there yet."""
        if (entity := self.loaded.pipeline.entity) is not None:
            raise BadInputError(
                f"{operation} is not there yet for a pipeline with [entity] (key = {entity.key!r}): its answers are made of "
                "windows, which live with the branch. Use a pipeline without that table."
            )

    @property
    def _logs(self) -> Logs:
        return logs_of(self.loaded.pipeline, self.folder)

    def log(self) -> Log:
        """The log, with this pipeline's topics."""
        return self._logs.log()

    def source(self, topics: Sequence[str]) -> Source:
        """A reader of some of its topics, from their beginning."""
        return self._logs.source(topics)

    def backends(self, branch: str, fork: Fork | None = None) -> Backends:
        """Everything a branch reads and writes; its first entry is read from its journal unless it is given."""
        log, first = self.log(), self.first_topics(branch) if fork is None else self._own_topics(fork)
        source = self._logs.source([*self.loaded.pipeline.topics, *first], shard_of(branch))
        if first:
            source = Retraced(source, [(tp, *ends) for tp, ends in source.bounds().items() if split_tp(tp)[0] in first])
        retention = Retention(self.ledger_stream(), self.loaded.pipeline.versions.keep)
        return Backends(source, log, self.journal(branch), self.store(), retention, partial(self._logs.marked, branch))

    def first_topics(self, branch: str) -> list[str]:
        """What a branch reads to its end before the pipeline's topics: rows from a file, as its first entry states."""
        if not self.has_branch(branch):
            return []
        try:
            fork = next(iter(counted(self.journal(branch), branch, Cursor())), None)
        except DamageError:
            return []  # whoever reads the journal says so
        return self._own_topics(fork) if isinstance(fork, Fork) else []

    def _own_topics(self, fork: Fork) -> list[str]:
        return [name for name in fork.topics if name not in self.loaded.pipeline.topics]

    def journal(self, branch: str) -> Journal:
        """The journal of a branch, whole: what its stream has deleted is read from the store."""
        return Journal(self._logs.journal(branch), self.store(), branch)

    def has_branch(self, branch: str) -> bool:
        """Whether a branch has a journal."""
        return branch in self.branches()

    def branches(self) -> list[str]:
        """Every branch that has a journal."""
        return self._logs.branches()

    def store(self) -> FolderStore:
        """Checkpoints."""
        return FolderStore(self.folder / "store")

    def ledger_stream(self) -> Stream:
        """What operators and gates decided."""
        return self._logs.ledger()

    @property
    def ledger_name(self) -> str:
        """What messages call the ledger."""
        return self._logs.ledger_name

    def ledger(self) -> Ledger:
        """The ledger as it stands."""
        ledger = Ledger(self.ledger_name)
        ledger.follow(self.ledger_stream())
        return ledger

    @contextmanager
    def hold(self, branch: str, take_over: bool) -> Iterator[None]:
        """Be the one live process of a branch on this machine; the kernel lets go when the process ends, however it ends.

        With ``take_over`` the other process's hold is passed by: the journal's fence will stop it.
        Raises: BusyError naming the process that holds it.
        """
        path = self.folder / f"{branch}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _own_lock(path) if take_over else _free_lock(path, branch)
        except OSError as error:
            raise StorageError(
                f"{path}: {error.strerror}. Free space or make the folder writable, or name another with --home."
            ) from error
        try:
            yield
        finally:
            os.close(handle)


def _free_lock(path: Path, branch: str) -> int:
    """The lock file, held; BusyError where a live process holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, _stamp(), 0)
    except BlockingIOError as error:
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise BusyError(
            f"Branch {branch} is being written by {holder} ({path}). Stop that process, or take the branch from it with "
            "--take-over."
        ) from error
    return handle


def _own_lock(path: Path) -> int:
    """A new lock file, held, in the old one's place: whoever held that one holds nothing that others look at."""
    draft = path.with_suffix(f".{os.getpid()}")
    handle = os.open(draft, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.pwrite(handle, _stamp(), 0)
    draft.replace(path)
    return handle


def _stamp() -> bytes:
    return f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode()


def require_branch(instance: Instance, branch: str) -> None:
    """Raises: MillraceError where the pipeline has no such branch yet."""
    if not instance.has_branch(branch):
        branches = ", ".join(instance.branches()) or "none yet; begin with `millrace run`"
        instead = no_branch(branch, instance.branches())
        raise MillraceError(f"{instance.folder} has no branch {branch}.{instead} There are: {branches}.")
