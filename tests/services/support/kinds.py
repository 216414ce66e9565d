"""A pipeline that has a field of every kind of value but pictures, and its newest version as a folder that MLflow opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from millrace.services.api import Pipeline
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.registry.export import export

TEXT = """name = "kinds"
fields = [
    { name = "n", missing = "mean" },
    { name = "pair", size = 2 },
    { name = "kind", type = "categorical", categories = "grow", max = 4, missing = "category" },
    { name = "seen", type = "time", unit = "h", zone = "+02:00", missing = "mean" },
]
label = { name = "y", type = "LABEL" }
learner = { kind = "ridge" }
"""
FIELDS = ("n", "pair", "kind", "seen")
START_H = 490_000


def a_row(at: int) -> dict[str, Any]:
    """Plain values."""
    return {"n": float(at % 7), "pair": [at % 2, at % 3], "kind": ("ant", 7, True)[at % 3], "seen": START_H + at}


def asked(rows: list[dict[str, Any]], **columns: Any) -> dict[str, Any]:
    """Rows as columns, some of them given otherwise."""
    return {name: [row[name] for row in rows] for name in FIELDS} | columns


def learned(folder: Path, label: str = "number") -> Pipeline:
    """One that has learned 200 rows; ``label``: the type of what is to be predicted."""
    file = folder / "kinds.toml"
    file.write_text(TEXT.replace("LABEL", label))
    pipeline = Pipeline.load(file, home=folder)
    rng = np.random.default_rng(3)
    labels = rng.standard_normal(200).tolist() if label == "number" else rng.choice(["rose", "lily"], 200).tolist()
    pipeline.append([a_row(at) | {"y": labels[at]} for at in range(200)])
    pipeline.learn()
    return pipeline


def exported(folder: Path) -> Path:
    """The newest version of the pipeline in ``folder`` as a folder."""
    export(Instance(load_pipeline(folder / "kinds.toml"), folder / "kinds"), "newest", folder / "exported")
    return folder / "exported"
