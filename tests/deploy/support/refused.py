"""Pipelines that both `millrace config show` and `helm install` refuse, by the key that they name."""

from __future__ import annotations

from typing import Any

PIPELINE: dict[str, Any] = {"name": "p", "fields": [{"name": "x"}], "label": {"name": "y"}, "learner": {"kind": "ridge"}}

NAMED = {"host:port": "bootstrap", "act": "kind", "shards": "kind", "offset": "zone"}  # where the schema names another key

REFUSED: dict[str, dict[str, Any]] = {
    "gama": PIPELINE | {"learner": {"kind": "ridge", "gama": 1.0}},
    "kind": PIPELINE | {"learner": {"kind": "rigde"}},
    "field": PIPELINE | {"fields": []},
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
    "host:port": PIPELINE | {"log": {"kind": "kafka", "kafka": {"bootstrap": "kafka"}}},
    "registry": PIPELINE | {"log": {"registry": "registry:8081"}},
    "act": PIPELINE | {"learner": {"kind": "river", "model": "linear_model.Perceptron"}, "drift": {"act": "discount"}},
    "shards": PIPELINE | {"shards": 2, "log": {"partitions": 2}, "learner": {"kind": "softmax"}},
    "memory": PIPELINE | {"shards": 2, "log": {"partitions": 2}, "memory": {}},
    "offset": PIPELINE | {"fields": [{"name": "x", "type": "time", "zone": "Europe/Berlin"}]},
    "task": PIPELINE | {"learner": {"kind": "er", "task": "regress"}},
}
