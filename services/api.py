"""The public names of millrace for a program or a notebook; everything else may change without notice.

A ``Pipeline`` does what the command line does, by the same functions, in this process and on the same state: what one appends,
learns or decides, the other sees. Ray is not needed. Examples use a pipeline that tells whether a number is even:

>>> even = example_pipeline()
>>> even.append([{"x": 0, "even": True}, {"x": 1, "even": False}])
2
>>> even.learn().read
2
>>> even.predict([{"x": 0}, {"x": 1}]).labels
('true', 'false')
"""

from __future__ import annotations

import atexit
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import msgspec

from millrace.learners.errors import BadInputError, ConfigError, MillraceError
from millrace.services.config.config import Loaded, build_pipeline, home_folder, load_pipeline
from millrace.services.config.entities import as_written
from millrace.services.config.names import BRANCH, NAME_CHARACTERS
from millrace.services.data.templates import flags_of, loaded_toml
from millrace.services.errors import BusyError, NotCountedError, NotProvedError, NotReadyError
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.printable import MOST_WRITTEN
from millrace.services.python import frames
from millrace.services.python.results import Answers, Decided, Proof, Scores, Status, Version
from millrace.services.training.run import Bounds, Done
from millrace.streams.labels.served import LateLabel, Prediction, encode_row
from millrace.streams.schema import Field, Label, Schema
from millrace.streams.sharding import refuse_name

if TYPE_CHECKING:
    from millrace.services.decisions.decide import Change, Naming
    from millrace.services.pipeline.bundle import Bundle
    from millrace.streams.records import Event

__all__ = [
    "Answers",
    "BadInputError",
    "BusyError",
    "ConfigError",
    "Decided",
    "Done",
    "Field",
    "Label",
    "LateLabel",
    "MillraceError",
    "NotCountedError",
    "NotProvedError",
    "NotReadyError",
    "Pipeline",
    "Prediction",
    "Proof",
    "Scores",
    "Status",
    "Version",
    "encode_row",
    "example_pipeline",
]

NO_SETTINGS: Mapping[str, Any] = {}
NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, repr=False)
class Pipeline:
    """A pipeline and the folder of its state, ``HOME/NAME``. Made by ``load`` or ``build``.

    >>> example_pipeline().name
    'even'
    """

    _instance: Instance
    branch: str  # which history of the pipeline

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        branch: str = BRANCH,
        home: str | Path | None = None,
        settings: Mapping[str, Any] = NO_SETTINGS,
    ) -> Pipeline:
        """The pipeline that a file says.

        ``settings`` are dotted keys as of ``--set``, such as ``{"learner.gamma": 2.0}``; they come before the environment, and
        that comes before the file. ``home``: folder of all state; else ``$MILLRACE_HOME``, else ``.millrace``.

        >>> even = example_pipeline()
        >>> file = even.save(even.folder / "even.toml")
        >>> Pipeline.load(file, home=even.folder.parent, settings={"batch.rows": 32}).status().learned
        100

        Raises: ConfigError naming file, key, value and the nearest valid name; BadInputError for what can be no branch.
        """
        return cls._of(load_pipeline(Path(path), flags_of(settings)), branch, home)

    @classmethod
    def build(
        cls,
        name: str,
        fields: Sequence[Field],
        label: Label,
        learner: str,
        *,
        settings: Mapping[str, Any] = NO_SETTINGS,
        home: str | Path | None = None,
    ) -> Pipeline:
        """A pipeline without a file. ``learner`` is a kind, such as "ridge"; ``settings`` and ``home`` are as of ``load``.

        >>> field, label, more = Field("x", size=2), Label("kind"), {"learner.gamma": 2.0, "batch.rows": 32}
        >>> Pipeline.build("pairs", [field], label, "ridge", settings=more)
        Pipeline('pairs', branch='main', folder='.millrace/pairs')

        Raises: ConfigError as ``load``.
        """
        raw = {"name": name, "fields": [as_written(field) for field in fields], "label": msgspec.to_builtins(label)}
        return cls._of(build_pipeline(raw | {"learner": {"kind": learner}}, flags_of(settings)), BRANCH, home)

    @classmethod
    def _of(cls, loaded: Loaded, branch: str, home: str | Path | None) -> Pipeline:
        if not branch or not set(branch) <= NAME_CHARACTERS:  # it names files
            raise BadInputError(f"branch = {branch!r}: must be letters, digits, - and _.")
        refuse_name(branch, loaded.pipeline.shards)
        return cls(Instance(loaded, home_folder(None if home is None else str(home)) / loaded.pipeline.name), branch)

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, branch={self.branch!r}, folder={str(self.folder)!r})"

    @property
    def name(self) -> str:
        """What it is called."""
        return self._instance.loaded.pipeline.name

    @property
    def folder(self) -> Path:
        """Where its state lies."""
        return self._instance.folder

    def save(self, path: str | Path) -> Path:
        """Write a pipeline file that says the same, for ``load`` and every `millrace` command; the file's path.

        >>> even = example_pipeline()
        >>> even.save(even.folder / "even.toml").name
        'even.toml'

        Raises: BadInputError where the file is there already or cannot be written.
        """
        try:
            with Path(path).open("x", encoding="utf-8") as file:
                file.write(loaded_toml(self._instance.loaded))
        except OSError as error:
            raise BadInputError(f"{path} cannot be written: {error.strerror}. Name another file.") from error
        return Path(path)

    def append(self, rows: Any, *, headers: Mapping[str, str] = NO_HEADERS, rows_per_message: int = 1) -> int:
        """Append rows to the log; returns how many.

        ``rows``: mappings, a pandas or polars DataFrame, an Arrow table, or what else exports itself as Arrow. None, NaN and NA
        are missing values. All rows are checked before the first is appended. ``headers`` say who sent them, such as
        ``{"producer": "till-7"}``. Above 1, ``rows_per_message`` of them travel as one Arrow batch, which is faster.

        >>> example_pipeline().append([{"x": 1, "even": False}], headers={"producer": "docs"})
        1

        Raises: BadInputError naming row and column of what the pipeline cannot take; StorageError where the log refuses.
        """
        from millrace.services.data import send as sending

        if rows_per_message < 1:
            raise BadInputError(f"rows_per_message = {rows_per_message}: must be at least 1.")
        events = self._events(rows, self._instance.loaded.pipeline.schema)
        values: Iterable[bytes] = [event.value or b"" for event in events]
        if rows_per_message > 1:
            values, _ = sending.as_arrow(self._instance, values, 0.0, False, rows_per_message)
        sending.send(self._instance, values, 0.0, False, _headers(headers), rows_per_message)
        return len(events)

    def append_served(self, records: Iterable[Prediction | LateLabel], *, headers: Mapping[str, str] = NO_HEADERS) -> int:
        """Append predictions that were served, and labels that came for them, to ``NAME.served``; returns how many.

        >>> late = example_pipeline({"labels.horizon_ms": 60000})
        >>> asked = Prediction("number 7", encode_row({"x": 1}), "main", 1, 1, ("true", "false"), (0.1, 0.9))
        >>> late.append_served([asked, LateLabel("number 7", False)]), late.learn().read, late.status().learned
        (2, 2, 101)

        Raises: BadInputError where the pipeline has no table [labels], or naming the record that it cannot take; StorageError
        where the log refuses.
        """
        from millrace.services.data import send as sending

        sending.topic_of(self._instance, served=True)
        codec = self._instance.fold_spec.served
        assert codec is not None  # the topic was refused otherwise
        return sending.send(self._instance, frames.served_values(records, codec), 0.0, True, _headers(headers))

    def learn(self, rows: int = 0, *, take_over: bool = False, past_rejects: str | None = None) -> Done:
        """Learn from the log to its end, or until at least ``rows`` records were read, and mark a version.

        Ctrl-C and SIGTERM end it after the step under way. With ``take_over`` a live process that has the branch stops.
        ``past_rejects``: why it is to go past all records that are in the log by now, however many it refuses.

        >>> done = example_pipeline().learn()
        >>> done.branch, done.read, done.version
        ('main', 0, 'main.3')

        Raises: BusyError where a live process has the branch; TooManyRejectedError where most records cannot be read.
        """
        from millrace.services.training import past_rejects as rejects
        from millrace.services.training import shards as sharded

        if rows < 0:
            raise BadInputError(f"rows = {rows}: must be at least 0.")
        if past_rejects is not None:
            rejects.let_past(self._instance, self.branch, past_rejects)
        return sharded.learn(self._instance, self.branch, Bounds(rows=rows), take_over)

    def predict(self, rows: Any, version: str | None = None) -> Answers:
        """Answer ``rows``, given as to ``append``; a label or weight in them is not looked at. Nothing is appended.

        Without ``version`` what is served answers: the newest state, or what a rollback chose. Else a version, an alias, or
        "newest". Each call reads the state from the store, so hand over many rows at once.

        >>> example_pipeline().predict([{"x": 0}, {"x": 1}], "newest").labels
        ('true', 'false')

        Raises: BadInputError as ``append``; NotReadyError where nothing was learned yet; MillraceError where there is no such
        version; DamageError where its parts are not whole.
        """
        bundle = self._bundle(version)
        schema = bundle.schema  # of when it was learned
        events = self._events(rows, schema, {schema.label.name, schema.weight})
        answer_batch, identity = bundle.predict(frames.columns_of_events(events, schema)), bundle.identity
        raw_rows = tuple(event.value or b"" for event in events)
        place = (identity.branch, identity.epoch, identity.seq, identity.version)
        corrected = None if answer_batch.made_of is None else answer_batch.made_of()
        made_of = (corrected, tuple(answer_batch.far_out))
        return Answers(answer_batch.scores, answer_batch.labels, bundle.classes, *place, raw_rows, *made_of)

    def scores(self) -> Scores:
        """How good the answers of the branch were, row by row as it learned.

        >>> example_pipeline().scores().rows
        100

        Raises: MillraceError where there is no such branch; NotReadyError where it has let no scores out.
        """
        from millrace.services.decisions import status as looking

        return Scores(*looking.scored(self._instance, self.branch))

    def status(self) -> Status:
        """Where the branch is, how far behind, where every record went.

        >>> example_pipeline().status().learned
        100

        Raises: MillraceError where there is no such branch.
        """
        from millrace.services.decisions import status as looking
        from millrace.services.registry import mirror
        from millrace.services.serving import status as endpoint_status

        facts = looking.status(self._instance, self.branch)
        return Status.of(facts | mirror.describe(self._instance) | endpoint_status.served(self._instance))

    def versions(self) -> list[Version]:
        """Every version of the pipeline, branch by branch, oldest first.

        >>> [version.version for version in example_pipeline().versions()]
        ['main.3']

        Raises: DamageError where a journal or the ledger is damaged.
        """
        from millrace.services.decisions import versions

        return [Version.of(row) for row in versions.versions(self._instance)]

    def verify(self, version: str | None = None) -> list[Proof]:
        """Fold the branch, or one ``version``, again from the log, compare every mark, and certify in the ledger what holds.

        >>> [proof] = example_pipeline().verify("newest")
        >>> proof.proved
        ('main.3',)

        Raises: NotProvedError naming each thing that does not hold.
        """
        from millrace.services.decisions import versions
        from millrace.services.proof import certify as certifying

        if version is None:
            return [Proof.of(report) for report in certifying.prove_branch(self._instance, self.branch)]
        return [Proof.of(certifying.prove_version(self._instance, versions.resolved(self._instance, version)))]

    def roll_back(self, reason: str, version: str | None = None) -> Decided:
        """Serve ``version``, else the version before what is served. Learning goes on; ``serve`` goes forward again.

        While an alarm is open, the version before is the newest verified one from before the onsets of all that are open.

        >>> even = example_pipeline()
        >>> even.roll_back("garbage since 02:10", "main.3")
        Decided(before='the newest of main', after='version main.3', reason='garbage since 02:10')

        Raises: BadInputError without a reason; MillraceError where there is no such version, or none before; DamageError where
        its parts are not whole; NotCountedError where somebody has decided otherwise meanwhile.
        """
        from millrace.services.decisions import rollback

        _refuse_unsaid(reason)
        return self._decide(rollback.plan_rollback(self._instance, version), reason)

    def serve(self, reason: str, version: str | None = None, *, follow: str | None = None) -> Decided:
        """Serve ``version``, or the newest state of the branch ``follow``.

        >>> example_pipeline().serve("mended", follow="main").after
        'the newest of main'

        Raises: as ``roll_back``; BadInputError where both or neither are named.
        """
        from millrace.services.decisions import decide as deciding

        _refuse_unsaid(reason)
        return self._decide(deciding.plan(self._instance, deciding.target(version, follow)), reason)

    def promote(self, version: str, reason: str, *, alias: str = "champion") -> Decided:
        """Let ``alias`` name ``version``, which is kept for as long; "none" takes the alias away.

        >>> example_pipeline().promote("newest", "audit", alias="pinned-may").after
        'version main.3'

        Raises: as ``roll_back``; NotProvedError for a version that differs from its log.
        """
        from millrace.services.decisions import decide as deciding

        _refuse_unsaid(reason)
        return self._decide(deciding.plan_promotion(self._instance, alias, version), reason)

    def _decide(self, change: Change | Naming, reason: str) -> Decided:
        from millrace.services.decisions import decide as deciding

        deciding.decide(self._instance, change, reason)
        return Decided(deciding.describe(change.before), deciding.describe(change.to), reason)

    def _bundle(self, version: str | None) -> Bundle:
        """The state that answers."""
        from millrace.services.decisions import decide as deciding
        from millrace.services.pipeline.archive import Archive

        archive, served = Archive(self._instance), self._instance.ledger().serving.get(ENDPOINT)
        target = served if version is None else deciding.target(version, None)
        if target is not None and target.version is not None:
            return archive.version(str(deciding.plan(self._instance, target).to.version))
        bundle = None if target is None else archive.newest(str(target.follow))
        if bundle is None:
            raise NotReadyError(f"Pipeline {self.name} has learned nothing yet. Call append and learn, then predict.")
        return bundle

    def _events(self, rows: Any, schema: Schema, without: Container[str | None] = ()) -> list[Event]:
        """Rows as checked events."""
        self._instance.refuse_completions("Handing over rows")
        pipeline = self._instance.loaded.pipeline
        return frames.events_of(rows, schema, pipeline.log.max_bytes, without, pipeline.unknown)


def example_pipeline(settings: Mapping[str, Any] = NO_SETTINGS) -> Pipeline:
    """A pipeline to try things on, in a folder that goes when Python ends; from 100 numbers it has learned which are even.

    >>> example_pipeline().learn()
    Done(branch='main', epoch=2, seq=5, read=0, learned=0, passed=0, rejected=0, version='main.3')
    """
    home = mkdtemp(prefix="millrace-")
    atexit.register(rmtree, home, ignore_errors=True)
    defaults = {"batch.rows": 1, **settings}
    even = Pipeline.build("even", [Field("x")], Label("even", "boolean"), "ridge", settings=defaults, home=home)
    even.append([{"x": number % 2, "even": number % 2 == 0} for number in range(100)])
    even.learn()
    return even


def _headers(headers: Mapping[str, str]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value.encode()) for name, value in headers.items())


def _refuse_unsaid(reason: str) -> None:
    if not reason.strip():  # whoever reads the ledger would be told nothing
        raise BadInputError("reason: say why in a few words; the ledger keeps it.")
    if len(reason) > MOST_WRITTEN:
        raise BadInputError(f"reason: it has {len(reason):,} characters; say why in at most {MOST_WRITTEN:,}.")
