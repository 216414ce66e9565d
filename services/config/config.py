"""One configuration record: the pipeline file, then the environment, then flags; parsed once and passed down.

Environment: ``MILLRACE__LEARNER__GAMMA=2`` sets ``learner.gamma``; ``MILLRACE_HOME`` names the state folder. This is the only
file that reads the environment, but for what kernels.py pins before this one can be loaded.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from millrace.learners.declaration import declared, declared_keys
from millrace.learners.drift.alarms import ACTS, DriftConfig
from millrace.learners.errors import ConfigError
from millrace.learners.memory.config import MemoryConfig, Remembering
from millrace.learners.table import LEARNERS, WITH_MEMORY
from millrace.services.config import completions, entities
from millrace.services.config.digests import Digests
from millrace.services.config.hints import ABSENT, nearest, options_of, record_of, value_at
from millrace.services.config.names import NAME_CHARACTERS
from millrace.services.config.pipeline_file import read_toml, refuse_large
from millrace.services.config.sections import BatchConfig, LogConfig, MlflowConfig, ServingConfig, VersionsConfig
from millrace.streams.entity.declared import schema_of
from millrace.streams.features.backbone import located
from millrace.streams.kafka.cluster import Secrets
from millrace.streams.labels.join import LabelRules
from millrace.streams.schema import Entity, Field, Label, Llm, Schema, Unknown, leaves
from millrace.streams.sharding import refuse_unmergeable
from millrace.streams.state.held_out import HeldOutConfig
from millrace.streams.worker.config import WorkerConfig

ENVIRONMENT = "MILLRACE__"
SPELLINGS = {"solve_in_background": "solve_behind"}  # of keys of [learner]: the new one, and the one that is stored
NEEDS = {"discount": "discount", "raise-rate": "raise_rate"}  # drift.act -> the ability that its learner must have


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Everything a pipeline file can say."""

    name: str  # letters, digits, - and _: names the folder, the topics and the model that is served
    fields: tuple[Field, ...]  # the features of a row, in the order of their columns; at least one
    label: Label  # what is to be predicted
    learner: dict[str, Any]  # its kind, and the keys of that kind
    memory: MemoryConfig | None = None  # an error memory around the learner; without it answers are the learner's own
    weight: str | None = None  # the row's key that holds its weight, a number from 0, more counts more; without it: 1
    # a record with a key that neither fields, label nor weight name: "reject" it as a dead letter, or "ignore" the key; may be
    # changed at any time, and holds for what is read from then on
    unknown: Unknown = "reject"
    seed: int = 0  # >= 0, where all random draws begin; another seed is another model
    threads: int = 1  # >= 1, threads of every BLAS in the worker
    # which code NumPy, SciPy and torch run: "own", the fastest that the processor has; "avx2", the same wherever AVX2 and FMA
    # are, so that another model of processor folds to equal bits, but for networks
    kernels: Literal["own", "avx2"] = "own"
    # >= 1, at most log.partitions: workers that learn at once, each its share of the partitions; merged exactly, served as one
    shards: int = 1
    batch: BatchConfig = field(default_factory=BatchConfig)  # how rows are gathered into training batches
    log: LogConfig = field(default_factory=LogConfig)  # where events come from
    worker: WorkerConfig = field(default_factory=WorkerConfig)  # how the worker reads and marks
    drift: DriftConfig | None = None  # what is watched for drift; without it nothing is
    evaluate: HeldOutConfig | None = None  # rows that are held out and evaluated again and again; without it none are
    serving: ServingConfig = field(default_factory=ServingConfig)  # how the endpoint answers
    versions: VersionsConfig = field(default_factory=VersionsConfig)  # which versions are kept
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)  # where versions are mirrored to
    labels: LabelRules | None = None  # labels that come after their prediction; without it they stand in the rows
    entity: Entity | None = None  # whose row it is, for fields of its past; without it rows are nobody's
    llm: Llm | None = None  # a language model whose completions are learned from; it stands in place of fields and label

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        if not self.name or not set(self.name) <= NAME_CHARACTERS:
            raise ValueError(f"name = {self.name!r}: must be letters, digits, - and _")
        if self.seed < 0 or self.threads < 1:
            raise ValueError(f"seed = {self.seed}, threads = {self.threads}: seed is at least 0, threads at least 1")
        if self.topic in (f"{self.name}.scores", f"{self.name}.dead-letters", self.served_topic):
            raise ValueError(f"log.topic = {self.topic!r}: the pipeline writes this topic itself")
        self._check_shards(self.schema)  # which refuses names that stand twice
        self._check_labels()
        if self.evaluate is not None and self.label.task != "classify":
            raise ValueError("evaluate: what is held out is scored by class, and this label is a number; leave the table out")

    def _check_shards(self, schema: Schema) -> None:
        if self.shards == 1:
            return
        refuse_unmergeable(schema, self.log.partitions, self.shards)
        if self.drift is not None and self.drift.act != "version":
            problem = f"shards = {self.shards}: drift.act = {self.drift.act!r} would be done to one shard of what is merged"
            raise ValueError(f'{problem}; use "version"')

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        self.labels.default_of(self.label)
        kept_ms = self.log.retention_hours * 3_600_000
        if kept_ms and kept_ms < (needed := self.labels.horizon_ms + self.labels.grace_ms):
            hours = self.log.retention_hours
            raise ValueError(f"log.retention_hours = {hours}: must outlast the labels' horizon and grace, {needed} ms")

    @property
    def kind(self) -> str:
        """The learner's kind, and whether a memory is around it: the name under which its algorithm is looked up."""
        return str(self.learner["kind"]) + (WITH_MEMORY if self.memory is not None else "")

    @property
    def schema(self) -> Schema:
        """Fields, label, weight, entity."""
        return schema_of(self.fields, self.label, self.weight, self.llm, self.entity)

    @property
    def topic(self) -> str:
        """The topic of events, or of completions."""
        return self.log.topic or (self.name if self.llm is None else f"{self.name}.completions")

    @property
    def served_topic(self) -> str:
        """The topic of served predictions and late labels."""
        return f"{self.name}.served"

    @property
    def topics(self) -> list[str]:
        """The topics that are read."""
        return [self.topic] if self.labels is None else [self.topic, self.served_topic]

    @property
    def declared(self) -> bytes:
        """What changes learning, beside the fields, as JSON: learner, batches, seed, and how labels are waited for."""
        learner = declared_keys(LEARNERS[self.learner["kind"]].config, self.learner)
        tables = {"batch": self.batch, "labels": self.labels, "evaluate": self.evaluate}
        optional_tables: dict[str, Any] = {name: declared(table) for name, table in tables.items() if table is not None}
        optional_tables |= {} if self.memory is None else {"memory": declared(self.memory)}
        optional_tables |= {} if self.drift is None else {"drift": self.drift.declared}
        optional_tables |= {} if self.shards == 1 else {"shards": self.shards}
        return msgspec.json.encode({"learner": learner, "seed": self.seed} | optional_tables, order="sorted")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pipeline, its learner's config record, and where each value came from."""

    pipeline: PipelineConfig
    learner: Any  # the config record of the learner's kind
    origin: dict[str, str]  # dotted key -> where it was set; defaults are not listed
    path: Path = Path()  # the file
    flags: tuple[str, ...] = ()

    @property
    def learner_config(self) -> Any:
        """What the learner is made of: its config record, with the memory's where there is one."""
        memory = self.pipeline.memory
        return self.learner if memory is None else Remembering(self.learner, memory)


def load_pipeline(path: Path, flags: Iterable[str] = ()) -> Loaded:
    """The pipeline that the file, the environment and ``flags`` ("learner.gamma=2") say together.

    Raises: ConfigError naming key, value and the nearest valid name.
    """
    return _loaded(read_toml(path), path, tuple(flags))


def build_pipeline(raw: dict[str, Any], flags: Iterable[str] = ()) -> Loaded:
    """The same for what a program says in place of a file, as TOML would be read.

    Raises: as ``load_pipeline``.
    """
    return _loaded(deepcopy(raw), Path(f"pipeline {raw.get('name')}"), tuple(flags))


def _loaded(raw: dict[str, Any], path: Path, flags: tuple[str, ...]) -> Loaded:
    origin = dict.fromkeys(leaves(raw), path.name)
    for key, text, source in [*_from_environment(), *_from_flags(flags)]:
        value = _set(raw, key, text, source)
        origin = {name: source_name for name, source_name in origin.items() if not name.startswith((f"{key}.", f"{key}["))}
        origin |= dict.fromkeys(leaves({key: value}), source)
    refuse_large(raw, path)
    _respell(raw, origin, path)
    completions.stand_in(raw, path)
    entities.stand_in(raw, path)
    pipeline: PipelineConfig = _convert(raw, PipelineConfig, "", path)
    _refuse_unrecorded(raw, pipeline, path)
    kind = pipeline.learner.get("kind")
    if not isinstance(kind, str) or kind not in LEARNERS:
        raise ConfigError(f"{path}: learner.kind = {kind!r} is not a learner.{nearest(str(kind), LEARNERS)}")
    completions.refuse_mismatch(kind, pipeline.llm, path)
    if pipeline.llm is not None:
        pipeline = replace(pipeline, llm=completions.located(pipeline.llm, path.parent, Digests(cache_folder())))
    task = pipeline.schema.task
    learner_keys = {key: value for key, value in pipeline.learner.items() if key != "kind"}
    if learner_keys.get("task", task) != task:
        raise ConfigError(f"{path}: learner.task = {learner_keys['task']!r}, but the label's type says {task!r}.")
    start = completions.start_keys(pipeline.llm, learner_keys, path)
    learner = _convert(learner_keys | {"task": task} | start, LEARNERS[kind].config, "learner", path)
    _refuse_unable(pipeline.drift, kind, path)
    entities.refuse_beside(pipeline, path)
    _refuse_memory(pipeline, learner, path)
    if pipeline.shards > 1:
        _refuse_unmergeable(kind, learner, f"{path}: shards = {pipeline.shards}")
    fields = located(_as_written(pipeline, raw), path.parent)
    written = {key: value for key, value in asdict(learner).items() if key != "start"}  # which [llm] says
    return Loaded(replace(pipeline, fields=fields, learner={"kind": kind} | written), learner, origin, path, flags)


def _as_written(pipeline: PipelineConfig, raw: dict[str, Any]) -> list[Field]:
    """The fields; with shards, where both center and scale are written they are declared, though one may be its default."""
    return [
        replace(field, scaled=field.center == 0.0 or field.scale == 1.0)
        if pipeline.shards > 1 and field.is_number and {"center", "scale"} <= {*keys} and "scaled" not in keys
        else field
        for field, keys in zip(pipeline.fields, raw["fields"], strict=True)
    ]


def _refuse_unable(drift: DriftConfig | None, kind: str, path: Path) -> None:
    """Raise where an alarm is to lead to what the learner cannot do."""
    able = LEARNERS[kind].abilities
    if drift is not None and (need := NEEDS.get(drift.act, "")) and need not in able:
        offered = [act for act in ACTS if act not in NEEDS or NEEDS[act] in able]
        raise ConfigError(
            f"{path}: drift.act = {drift.act!r}: learner {kind} cannot do that ({need} is none of its abilities). "
            f"With it there are: {', '.join(offered)}."
        )


def _refuse_memory(pipeline: PipelineConfig, learner: Any, path: Path) -> None:
    """Raise where a memory could not be published, or not be merged."""
    if pipeline.memory is not None:
        outputs = 1 if pipeline.label.task == "regress" else max(2, len(getattr(learner, "classes", ())))
        try:
            pipeline.memory.refuse_unservable(pipeline.schema.width, outputs, pipeline.shards)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}.") from error
        _refuse_frozen_untaught(pipeline.memory.freeze_base_rows, pipeline.learner["kind"], learner, path)


def _refuse_frozen_untaught(freeze_rows: int, kind: str, learner: Any, path: Path) -> None:
    """Raise where a learner would be frozen before its first step, for then it never has an answer that could be corrected."""
    needed = {"step_rows": getattr(learner, "step_rows", 0)}
    if LEARNERS[kind].needs and not learner.pixels:  # a network, whose frozen scale comes first
        needed["warm_up_rows"] = learner.warm_up_rows
    key = max(needed, key=lambda name: needed[name])
    if 0 < freeze_rows < needed[key]:
        raise ConfigError(
            f"{path}: memory.freeze_base_rows = {freeze_rows}: {kind} answers nothing before learner.{key} = {needed[key]} "
            "rows, and would never; freeze it later, or lower that."
        )


def _refuse_unmergeable(kind: str, learner: Any, location: str) -> None:
    if LEARNERS[kind].merge is None:
        mergeable = ", ".join(name for name, algorithm in LEARNERS.items() if algorithm.merge is not None)
        raise ConfigError(f"{location}: {kind} cannot be merged exactly; these can: {mergeable}.")
    if getattr(learner, "decay", 1.0) < 1.0:
        raise ConfigError(
            f"{location}: with learner.decay = {learner.decay} a row's weight depends on the rows of other shards."
        )


def home_folder(flag: str | None) -> Path:
    """The folder of all state: the flag, else ``MILLRACE_HOME``, else ``.millrace`` here."""
    return Path(flag or os.environ.get("MILLRACE_HOME") or ".millrace")


def cache_folder() -> Path | None:
    """Where what can be computed again is remembered: millrace in ``XDG_CACHE_HOME``, else in ``~/.cache``; None: nowhere."""
    home = os.environ.get("HOME")
    folder = os.environ.get("XDG_CACHE_HOME") or (home and f"{home}/.cache")
    return Path(folder, "millrace") if folder else None


def data_folder() -> Path:
    """Where development data lies: ``MILLRACE_DATA``, else ``../shared/data``."""
    return Path(os.environ.get("MILLRACE_DATA") or "../shared/data")


def endpoint_token() -> str | None:
    """What callers of the endpoint must show: ``MILLRACE_TOKEN``; never a flag, which every user of the machine can read."""
    return os.environ.get("MILLRACE_TOKEN") or None


def kept_environment(*names: str) -> dict[str, str]:
    """Those variables of the environment, for a child that gets no others."""
    return {name: os.environ[name] for name in names if name in os.environ}


def taken_endpoint_token() -> str | None:
    """The same, and gone from the environment: no process that is started from now on has it."""
    return os.environ.pop("MILLRACE_TOKEN", None) or None


def kafka_secrets() -> Secrets:
    """Passwords of a Kafka cluster: ``MILLRACE_KAFKA_PASSWORD`` (SASL), ``MILLRACE_KAFKA_SSL_PASSWORD`` (of the key's file)."""
    names = ("MILLRACE_KAFKA_PASSWORD", "MILLRACE_KAFKA_SSL_PASSWORD")
    return Secrets(*(os.environ.get(name) or "" for name in names))


def set_environment(values: Mapping[str, str]) -> None:
    """For what reads its settings from there when it is imported; what the user has set stays."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def settings(loaded: Loaded) -> list[tuple[str, Any, str]]:
    """Every key, its value and where it came from."""
    values = leaves(msgspec.to_builtins(loaded.pipeline))
    written = {entities.spelled(key): value for key, value in values.items()}
    return [(key, value, loaded.origin.get(key, "default")) for key, value in written.items()]


def _from_environment() -> Iterable[tuple[str, str, str]]:
    for name, text in sorted(os.environ.items()):
        if name.startswith(ENVIRONMENT):
            yield name.removeprefix(ENVIRONMENT).lower().replace("__", "."), text, f"environment {name}"


def _from_flags(flags: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    for flag in flags:
        key, equals, text = flag.partition("=")
        if not equals:
            raise ConfigError(f"--set {flag}: write KEY=VALUE, such as learner.gamma=2.")
        yield key.strip(), text, "flag --set"


def _set(raw: dict[str, Any], key: str, text: str, source: str) -> Any:
    """Set a dotted key to a TOML value, or to the text itself where it is none; the value."""
    *path, last = key.split(".")
    for name in path:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{source}: {key} does not name a single value; {name} is none or a list.")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    raw[last] = parsed["value"] if set(parsed) == {"value"} else text
    return raw[last]


def _respell(raw: dict[str, Any], origin: dict[str, str], path: Path) -> None:
    """Read keys of [learner] by their new spelling under the one that branches are begun with."""
    table = raw.get("learner")
    for new, old in SPELLINGS.items():
        if not isinstance(table, dict) or new not in table:
            continue
        if old in table:
            raise ConfigError(f"{path}: learner.{new} and learner.{old} are one key in two spellings. Keep learner.{new}.")
        table[old] = table.pop(new)
        for key in [key for key in origin if key.startswith(f"learner.{new}")]:  # several, where the value is none that fits
            origin[key.replace(new, old, 1)] = origin.pop(key)


def _refuse_unrecorded(raw: dict[str, Any], pipeline: PipelineConfig, path: Path) -> None:
    """Answers are recorded for labels that come later; who asks for the one without the other would wait in vain."""
    record = raw.get("serving", {}).get("record", "off")
    if pipeline.labels is None and record != "off":
        raise ConfigError(
            f"{path}: serving.record = {record!r}: nothing is recorded without a table [labels], which says how long an answer "
            "waits for its label. Add the table, or take this key away."
        )


def _convert(raw: dict[str, Any], kind: type[Any], prefix: str, path: Path) -> Any:
    """``raw`` as a checked record."""
    _refuse_unknown(raw, kind, prefix, path)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        text, _, location = str(error).partition(" - at `$")
        key = entities.spelled((prefix + location.rstrip("`")).lstrip(".")) or "the file"
        at = value_at(raw, location.rstrip("`"))
        shown_value = "" if at is ABSENT or isinstance(at, dict) else f" = {at!r}"
        options = options_of(kind, location.rstrip("`"))
        hint = nearest(str(at), options) if options else ""
        raise ConfigError(f"{path}: {key}{shown_value}: {text.rstrip('.')}.{hint}") from error


def _refuse_unknown(raw: Any, kind: Any, prefix: str, path: Path) -> None:
    """Raise for a key that the record does not have, with the nearest one that it has."""
    if get_origin(kind) is tuple and isinstance(raw, list):
        for at, item in enumerate(raw):
            _refuse_unknown(item, get_args(kind)[0], f"{prefix}[{at}]", path)
    kind = record_of(kind)
    if not is_dataclass(kind) or not isinstance(raw, dict):
        return
    hints = get_type_hints(kind)
    for key, value in raw.items():
        name = f"{prefix}.{key}".lstrip(".")
        if key not in hints:
            valid = [entities.spelled(f"{prefix}.{hint}").removeprefix(f"{prefix}.") for hint in hints]
            raise ConfigError(f"{path}: {name} = {value!r}: there is no such key.{nearest(key, valid)}")
        _refuse_unknown(value, hints[key], name, path)
