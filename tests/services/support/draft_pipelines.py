"""Pipelines of completions: of the tiny draft, and of any two folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny_draft
from answered import TOP, K

from millrace.learners.draft.completion import pack
from millrace.learners.draft.folder import fingerprint
from millrace.services.config.config import Loaded, load_pipeline
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import Instance
from millrace.streams.records import Record

TEXT = """name = "answers"
seed = 3
[llm]
target = "{target}"
draft = "{draft}"
capture = "all"
k = {k}
top = {top}
[learner]
kind = "draft"
rate = 3e-3
[batch]
rows = 16
[worker]
checkpoint_rows = 32
step_rows = 16
"""


def loaded(folder: Path, target: Path, draft: Path, more: str = "", **numbers: int) -> Loaded:
    """A pipeline file in a folder, read."""
    text = TEXT.format(target=target, draft=draft, **{"k": K, "top": TOP} | numbers) + more
    (folder / "answers.toml").write_text(text)
    return load_pipeline(folder / "answers.toml")


def tiny(folder: Path, more: str = "") -> Instance:
    """A pipeline of the tiny draft, whose target is a folder that only has a name."""
    read = loaded(folder, tiny_draft.folder(), tiny_draft.folder(), more, k=tiny_draft.K, top=tiny_draft.TOP)
    return Instance(read, folder / "home" / "answers")


def put(instance: Instance, values: list[bytes], tenant: bytes = b"a") -> None:
    """Append completions as serving does."""
    instance.log().append(instance.loaded.pipeline.topic, [Record(value, tenant, b"", 1_000) for value in values])


def tiny_values(count: int, seed: int = 0, **header: object) -> list[bytes]:
    """Completions of the tiny pipeline's target."""
    rng, target = np.random.default_rng(seed), bytes.fromhex(fingerprint(tiny_draft.folder()))
    return [pack(tiny_draft.completion(rng, **{"target": target, **header})) for _ in range(count)]


def weights(instance: Instance, branch: str = "main") -> dict[str, np.ndarray]:
    """Of the newest version of a branch."""
    parts = Archive(instance).parts(Archive(instance).marks(branch)[-1])
    return {name: value for name, value in parts.serve.items() if name.startswith("weight.")}


def equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    """To the bit."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
