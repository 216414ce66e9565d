"""The table [llm]: what it stands in place of, what it refuses, and the two folders that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from millrace.learners.draft.config import Start
from millrace.learners.draft.folder import config_of, fingerprint, tokens_of
from millrace.learners.errors import ConfigError
from millrace.learners.table import LEARNERS
from millrace.services.config.digests import Digests
from millrace.streams.schema import ACCEPTED, Llm

NEEDED = {
    "target": "name the folder of the model that answers",
    "draft": "name the folder of the draft that learning begins with",
    "capture": 'say whose completions go into the log: "all", "none", or a list of tenants',
}
HOUR_MS = 3_600_000
VERSION_ROWS, CHECKPOINT_ROWS = 256, 1024  # completions between two of them, unless [worker] says otherwise

# What is made for rows of fields and labels, and what a pipeline of completions has in its place.
FOR_ROWS: Mapping[str, str] = {
    "fields": "a completion has tokens, not fields",
    "label": "a completion is its own label",
    "weight": "a completion has no key that could hold its weight",
    "unknown": "a completion has no keys",
    "labels": "nothing comes late: a completion is its own label",
    "evaluate": "what is held out is scored by class; drafts are scored by domain before they learn",
    "memory": "an error memory corrects scores, and a draft has none",
    "shards": "two drafts have no exact sum",
}


def stand_in(raw: dict[str, Any], path: Path) -> None:
    """Put into a pipeline file's values what one of completions has in place of fields and label; others are left alone.

    Raises: ConfigError naming what [llm] lacks, or what cannot stand beside it.
    """
    llm = raw.get("llm")
    if not isinstance(llm, dict):
        return
    for key, sentence in NEEDED.items():
        if key not in llm:
            raise ConfigError(f"{path}: llm.{key} is missing: {sentence}.")
    for key, sentence in FOR_ROWS.items():
        if key in raw and raw[key] != {"shards": 1}.get(key):
            raise ConfigError(f"{path}: {key} does not stand beside [llm]: {sentence}. Leave it out.")
    drift = raw.get("drift")
    if isinstance(drift, dict) and drift.get("act") == "relearn":
        raise ConfigError(
            f'{path}: drift.act = "relearn" does not stand beside [llm]: it would keep whole completions by number, and a '
            'draft learns from its ring again anyway. Take "version", "reset" or "raise-rate".'
        )
    log = raw.setdefault("log", {})
    if isinstance(log, dict):
        if "retention_hours" in log:
            raise ConfigError(
                f"{path}: log.retention_hours does not stand beside [llm]: llm.keep_ms says how long. Leave it out."
            )
        keep_ms = llm.get("keep_ms", Llm.__dataclass_fields__["keep_ms"].default)
        log["retention_hours"] = keep_ms / HOUR_MS if isinstance(keep_ms, int) and keep_ms > 0 else 0.0
    _stand_in_for_versions(raw, llm, path)
    raw |= {"fields": [], "label": {"name": ACCEPTED.name, "type": ACCEPTED.type}}


def _stand_in_for_versions(raw: dict[str, Any], llm: dict[str, Any], path: Path) -> None:
    """Versions and checkpoints come more often than of rows: a completion is much work, and drafts are served by version.

    Raises: ConfigError where versions are to be made in another step than they are to be served in.
    """
    worker, promote = raw.setdefault("worker", {}), llm.get("promote_rows", 0)
    if not isinstance(worker, dict) or not isinstance(promote, int):
        return  # whoever converts them says what is wrong
    if promote and worker.get("version_rows", promote) != promote:
        raise ConfigError(
            f"{path}: llm.promote_rows = {promote} and worker.version_rows = {worker['version_rows']}: each version is served, "
            "so both have to be the same. Leave the latter out."
        )
    for key, rows in (("version_rows", promote or VERSION_ROWS), ("checkpoint_rows", CHECKPOINT_ROWS)):
        worker.setdefault(key, rows)


def located(llm: Llm, folder: Path, digests: Digests) -> Llm:
    """The table with its folders' paths taken from ``folder``, the sha256 of each, and the vocabulary.

    A missing folder is let pass where the file says its sha256: a rollback needs no model. What is said of the target is taken
    as said, for its weights may be large; the draft is hashed whenever it is there. ``digests`` remembers what was hashed.
    Raises: ConfigError where a folder is missing or another than its sha256 says, the two have different vocabularies, or
    nothing says how large they are.
    """
    paths = {name: (folder / getattr(llm, name)).absolute() for name in ("target", "draft")}
    said = {"target": llm.target_sha256, "draft": llm.draft_sha256}
    hashed = dict(said)
    for name, path in paths.items():
        if not path.is_dir() and not said[name]:
            raise ConfigError(f"llm.{name} = {str(path)!r}: there is no such folder.")
        if path.is_dir() and not (said[name] and name == "target"):
            hashed[name] = fingerprint(path, digests.of)
            if said[name] not in ("", hashed[name]):
                raise ConfigError(f"llm.{name}: {path} has sha256 {hashed[name]}, not {said[name]}. Put the other one back.")
    sizes = {name: config_of(path)["vocab_size"] for name, path in paths.items() if path.is_dir()}
    if len(set(sizes.values())) > 1:
        raise ConfigError(
            f"llm.draft has a vocabulary of {sizes['draft']} tokens and llm.target one of {sizes['target']}; take a draft of "
            "the same."
        )
    if len(sizes) == len(paths):
        _refuse_other_tokens(paths["target"], paths["draft"])
    vocabulary = llm.vocabulary or next(iter(sizes.values()), 0)
    if not vocabulary:
        raise ConfigError(
            "llm.vocabulary is missing, and neither llm.target nor llm.draft is here to say it. Write how many tokens they "
            "know."
        )
    if vocabulary < llm.top or (sizes and vocabulary not in sizes.values()):
        raise ConfigError(f"llm.top = {llm.top}, llm.vocabulary = {vocabulary}: the models know {sizes or 'no'} tokens.")
    return replace(
        llm,
        target=str(paths["target"]),
        draft=str(paths["draft"]),
        target_sha256=hashed["target"],
        draft_sha256=hashed["draft"],
        vocabulary=vocabulary,
    )


def _refuse_other_tokens(target: Path, draft: Path) -> None:
    """Raises: ConfigError where both have a tokenizer, and a number is not the same token to both."""
    both = tokens_of(target), tokens_of(draft)
    if both[0] is None or both[1] is None or both[0] == both[1]:
        return
    token, _ = min(both[1].items() - both[0].items() or both[0].items() - both[1].items(), key=lambda item: item[1])
    raise ConfigError(
        f"llm.draft has other tokens than llm.target: {token!r} is {both[1].get(token)} in its tokenizer.json and "
        f"{both[0].get(token)} in the target's; take a draft of the same."
    )


def refuse_mismatch(kind: str, llm: Llm | None, path: Path) -> None:
    """Raises: ConfigError where a learner of rows is to learn completions, or a draft rows."""
    distils = LEARNERS[kind].distils
    if distils and llm is None:
        raise ConfigError(
            f"{path}: learner.kind = {kind!r} learns from completions: add the table [llm], or take a learner of rows."
        )
    if llm is not None and not distils:
        able = ", ".join(name for name, algorithm in LEARNERS.items() if algorithm.distils)
        raise ConfigError(f"{path}: learner.kind = {kind!r} learns rows, and with [llm] there are completions; take {able}.")


def start_keys(llm: Llm | None, learner_keys: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What [llm] says of a draft, as keys of its learner; none where there is no such table.

    Raises: ConfigError where the file writes them itself.
    """
    if "start" in learner_keys:
        raise ConfigError(f"{path}: learner.start is not to be written; [llm] says what a draft begins with.")
    if llm is None:
        return {}
    return {"start": asdict(Start(llm.draft, llm.draft_sha256, llm.target_sha256, llm.k, llm.top))}
