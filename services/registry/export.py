"""A version as a folder that stands for itself: for `millrace export`, and for MLflow, which loads it without pickle.

The folder is the same, byte for byte, whenever it is made by one release on one Python. In it:

    weights.safetensors   what a replica answers from: feature tables, the learner's arrays, golden rows
    schema.json           the fields and the label that the version was learned with
    manifest.json         which version this is, where it comes from and why it was made, the sha256 of the weights, and what
                          is not in the folder and why
    journal.jsonl         the journal entries since its parent, as they were written, each on a line of its own
    backbone-....onnx     the network of a field of images
    model.onnx            the learner's head, x [n, d] -> scores; x is what the feature stage makes (only where there is one)
    MLmodel               names `millrace.services.pyfunc`, which opens the folder, and the columns that it takes and gives.
                          That name never changes: folders carry it.
    requirements.txt, python_env.yaml

A draft is a folder of another kind: config.json, model.safetensors and tokenizer as Hugging Face lays them out, with
manifest.json and journal.jsonl beside them.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from millrace.learners.distribution import how_to_get, release, requirement
from millrace.learners.draft.folder import WEIGHTS as DRAFT_WEIGHTS
from millrace.learners.errors import BadInputError, ConfigError, LearnerError
from millrace.learners.table import algorithm_of
from millrace.services.decisions.versions import resolved
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.bundle import Bundle, Identity, Parts, bundle_bytes, open_bundle
from millrace.services.pipeline.instance import Instance
from millrace.services.registry.lineage import parent, parent_sha256
from millrace.services.registry.signature import mlmodel
from millrace.streams.branch.branch import manifest_of
from millrace.streams.errors import DamageError, StorageError
from millrace.streams.features.backbone import located
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.segments import entries_of
from millrace.streams.journal.store import Segment
from millrace.streams.parts import sha256
from millrace.streams.schema import Field, Schema

FORMAT = 1
WEIGHTS, SCHEMA, MANIFEST, ONNX = "weights.safetensors", "schema.json", "manifest.json", "model.onnx"
NOT_INSTALLED = "the Python package onnx is not installed"  # why there is no ONNX
JOURNAL = "journal.jsonl"
TOKENIZER_ENDINGS = (".json", ".jinja", ".model", ".txt")  # of files that are taken over beside a draft's config and weights
OF_WEIGHTS = (".index.json", "adapter_config.json")  # ends of names that say where the weights are which are not taken over


class ExportManifest(msgspec.Struct, frozen=True):
    """Which version a folder holds."""

    format: int
    pipeline: str
    identity: Identity
    state_sha256: str
    weights_sha256: str
    millrace: str  # the release that wrote it
    parent: str | None = None  # a version
    parent_sha256: str | None = None  # of its state
    cause: str | None = None  # why the version was made
    journal_sha256: str | None = None  # of its segment in the store
    left_out: dict[str, str] = {}  # a file that could be here -> why it is not

    @property
    def left_out_words(self) -> str:
        """Which files are not here, and why, with what brings them where this runs; empty where none is missing.

        >>> of, left_out = Identity("main", 1, 3, "main.3"), {"model.onnx": "nothing was learned yet"}
        >>> ExportManifest(1, "even", of, "", "", "0.1", left_out=left_out).left_out_words
        'model.onnx: nothing was learned yet'
        """
        words = "; ".join(f"{file}: {why}" for file, why in self.left_out.items())
        return f"{words}. {how_to_get('onnx').rstrip('.')}" if NOT_INSTALLED in self.left_out.values() else words


def export(instance: Instance, version: str, folder: Path) -> ExportManifest:
    """Write a version, an alias's or the newest into a new or empty folder.

    Raises: MillraceError where there is no such version, DamageError where it is not whole, BadInputError, StorageError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(f"{folder} is not an empty folder; name another.")
    instance.refuse_entities("An export")
    archive = Archive(instance)
    return write(instance, archive, archive.mark(resolved(instance, version)), folder)


def write(instance: Instance, archive: Archive, mark: Mark, folder: Path) -> ExportManifest:
    """Write the version that ``mark`` names. Raises: DamageError, StorageError."""
    schema, parts = archive.schema(mark.branch), archive.parts(mark)
    if algorithm_of(parts.kind).distils:
        return _write_draft(instance, parts, mark, folder)
    weights = bundle_bytes(parts, schema)
    open_bundle(weights, sha256(weights), schema)  # what cannot be opened never leaves
    segment = manifest_of(instance.store(), mark).segment
    head, why = _onnx(parts)
    manifest = _manifest(instance, parts, mark, (segment, sha256(weights)))
    manifest = msgspec.structs.replace(manifest, left_out={ONNX: why} if head is None else {})
    files = {
        WEIGHTS: weights,
        SCHEMA: schema.declared,
        MANIFEST: msgspec.json.format(msgspec.json.encode(manifest)),
        "MLmodel": mlmodel(schema).encode(),
        "requirements.txt": requirement(_extras(parts.kind)).encode(),
        "python_env.yaml": f"python: {platform.python_version()}\ndependencies:\n- -r requirements.txt\n".encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in (
            files | ({} if head is None else {ONNX: head}) | _backbones(schema) | _journal(instance, mark, segment)
        ).items():
            (folder / file).write_bytes(content)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}. Free space or name another folder.") from error
    return manifest


def _manifest(instance: Instance, parts: Parts, mark: Mark, of: tuple[Segment | None, str]) -> ExportManifest:
    """``of``: the version's segment, and the sha256 of the weights."""
    (segment, weights_sha256), name = of, instance.loaded.pipeline.name
    return ExportManifest(FORMAT, name, parts.identity, mark.state_sha256, weights_sha256, release(), *_origin(segment))


def _write_draft(instance: Instance, parts: Parts, mark: Mark, folder: Path) -> ExportManifest:
    """A draft as Hugging Face lays it out, with the tokenizer of the folder that it began with, for transformers and vLLM.

    Raises: BadInputError where that folder is gone; StorageError.
    """
    llm = instance.loaded.pipeline.llm
    begun_with = Path("" if llm is None else llm.draft)
    if not begun_with.is_dir():
        raise BadInputError(f"llm.draft = {str(begun_with)!r} is not here, and the tokenizer lies there. Put the folder back.")
    servable: Any = algorithm_of(parts.kind).ready().servable(dict(parts.serve))
    try:
        servable.write(folder)
        for file in begun_with.iterdir():
            taken = file.suffix in TOKENIZER_ENDINGS and not file.name.endswith(OF_WEIGHTS)
            if taken and not (folder / file.name).exists():
                (folder / file.name).write_bytes(file.read_bytes())
        segment = manifest_of(instance.store(), mark).segment
        manifest = _manifest(instance, parts, mark, (segment, sha256((folder / DRAFT_WEIGHTS).read_bytes())))
        files = {MANIFEST: msgspec.json.format(msgspec.json.encode(manifest))} | _journal(instance, mark, segment)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}. Free space or name another folder.") from error
    return manifest


def opened(folder: Path) -> Bundle:
    """What answers, from an exported folder.

    Raises: DamageError where a file is missing or not what was exported, or was written by a newer release.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=ExportManifest)
        if manifest.format != FORMAT:
            raise DamageError(
                f"{folder} has format {manifest.format}, this release reads {FORMAT}. Use millrace {manifest.millrace}."
            )
        schema = msgspec.json.decode((folder / SCHEMA).read_bytes(), type=Schema)
        fields = [replace(field, backbone=_network(field)) if field.type == "image" else field for field in schema.fields]
        schema = replace(schema, fields=located(fields, folder))
        return open_bundle((folder / WEIGHTS).read_bytes(), manifest.weights_sha256, schema)
    except (OSError, msgspec.DecodeError, ConfigError) as error:
        raise DamageError(f"{folder} is not a version as millrace exports it ({error}). Export it again.") from error


def _origin(segment: Segment | None) -> tuple[str | None, str | None, str | None, str | None]:
    """Parent, its state, cause and segment; an old version does not say."""
    if segment is None:
        return None, None, None, None
    return (parent(segment), parent_sha256(segment), segment.cause, segment.entries.sha256)


def _journal(instance: Instance, mark: Mark, segment: Segment | None) -> dict[str, bytes]:
    if segment is None:
        return {}
    return {JOURNAL: b"".join(entry + b"\n" for entry in entries_of(instance.store(), mark.branch, segment.entries))}


def _network(field: Field) -> str:
    return f"backbone-{field.sha256[:12]}.onnx"


def _backbones(schema: Schema) -> dict[str, bytes]:
    """The networks of fields of images."""
    return {_network(field): Path(field.backbone).read_bytes() for field in schema.fields if field.type == "image"}


def _extras(kind: str) -> str:
    """What loading a version of this kind of learner needs beside our own package."""
    return ",".join(extra for extra in ("mlflow", algorithm_of(kind).needs) if extra)


def _onnx(parts: Parts) -> tuple[bytes | None, str]:
    """The head as ONNX; else why there is none."""
    algorithm = algorithm_of(parts.kind)
    if algorithm.onnx is None:
        return None, f"a learner of kind {parts.kind} has no form as ONNX"
    if find_spec("onnx") is None:
        return None, NOT_INSTALLED
    try:
        return algorithm.onnx(algorithm.servable(dict(parts.serve))), ""
    except LearnerError as error:
        return None, str(error)
