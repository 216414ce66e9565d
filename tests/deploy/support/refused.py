"""Pipelines that both `millrace config show` and `helm install` refuse, by the key that they name."""

from __future__ import annotations

from typing import Any

PIPELINE: dict[str, Any] = {"name": "p", "fields": [{"name": "x"}], "label": {"name": "y"}, "learner": {"kind": "ridge"}}

REFUSED: dict[str, dict[str, Any]] = {
    "gama": PIPELINE | {"learner": {"kind": "ridge", "gama": 1.0}},
    "kind": PIPELINE | {"learner": {"kind": "rigde"}},
    "fields": PIPELINE | {"fields": []},
    "label": {key: value for key, value in PIPELINE.items() if key != "label"},
    "rows": PIPELINE | {"batch": {"rows": 1.5}},
    "seed": PIPELINE | {"seed": 2**64},
    "bootstrap": PIPELINE | {"log": {"kind": "kafka", "kafka": {}}},
    "labels": PIPELINE | {"serving": {"record": "before-reply"}},
    "evaluate": PIPELINE | {"label": {"name": "y", "type": "number"}, "evaluate": {}},
    "max": PIPELINE | {"fields": [{"name": "x", "max": 3}]},
    "zone": PIPELINE | {"fields": [{"name": "x", "zone": "+01:00"}]},
    "categories": PIPELINE | {"fields": [{"name": "x", "type": "categorical"}]},
    "image": PIPELINE | {"learner": {"kind": "er", "image": [1, 2]}},
    "model": PIPELINE | {"learner": {"kind": "river"}},
    "task": PIPELINE | {"learner": {"kind": "er", "task": "regress"}},
}
