"""What the chart comes to: rendered by Helm 3 and 4, and taken by the strict schemas of Kubernetes and of others' CRDs."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from charts import CHART, CI, ROOT, Doc, docs, of_kind, program, rendered, run, template
from pipelines import lacks
from referencing import Registry, Resource
from refused import PIPELINE

from millrace.services.config.config import build_pipeline
from millrace.streams.kafka.client import MESSAGE_BYTES
from millrace.streams.kafka.replication import weak
from millrace.streams.kafka.stream import FOREVER

KUBERNETES = ("1.31.0", "1.34.0", "1.37.0")
CRDS = ROOT.parent / "shared" / "k8s-crds"
KAFKA = CHART / "ci" / "kafka-values.yaml"
EXTERNAL = {"ServiceMonitor", "PrometheusRule", "KafkaTopic", "KafkaUser"}

cases = pytest.mark.parametrize("file", CI, ids=lambda file: file.stem)


@cases
def test_it_is_linted_without_a_warning(helm: Path, file: Path) -> None:
    """By each Helm, with each value file."""
    done = run(helm, "lint", "CHART", "--strict", "--values", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout and "[ERROR]" not in done.stdout


@cases
def test_both_helms_render_the_same(file: Path) -> None:
    """But for the token, which is drawn."""
    three, four = (json.dumps(rendered(program(name), file)) for name in ("helm-3", "helm-4"))
    drawn = re.compile(r'"tokens": "[^"]*"')
    assert drawn.sub("", three) == drawn.sub("", four)


@cache
def strict(version: str, kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    """Kubernetes' own schema of an object, closed."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    group, _, revision = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.split(".")[0], revision)))
    schema = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema, registry=definitions(version))


@cache
def definitions(version: str) -> Registry[Any]:
    """What those schemas refer to."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    return Resource.from_contents(json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))) @ Registry()


@pytest.mark.parametrize("version", KUBERNETES)
@cases
def test_kubernetes_takes_every_object(helm: Path, file: Path, version: str) -> None:
    """No key that it does not know, none missing, none of another type."""
    own = [doc for doc in rendered(helm, file) if doc["kind"] not in EXTERNAL]
    assert {"StatefulSet", "Service", "Pod"} <= {doc["kind"] for doc in own}
    for doc in own:
        strict(version, doc["kind"], doc["apiVersion"]).validate(doc)


def test_a_key_that_kubernetes_does_not_have_is_caught() -> None:
    """So that the test above says something."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "imagee": "y"}]}}
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        strict(KUBERNETES[0], "Pod", "v1").validate(pod)


@cache
def crd_schemas() -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    """The schemas of others' resources, closed, by kind and version."""
    if not CRDS.parent.is_dir():
        pytest.skip(f"no CRDs: {CRDS.parent} is not beside the checkout")
    if not CRDS.is_dir():
        lacks(f"no CRDs: {CRDS} is not there")
    made = {}
    for path in CRDS.glob("*.yaml"):
        for doc in docs(path.read_text(encoding="utf-8")):
            for version in doc["spec"]["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"] |= {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"type": "object"},
                }
                name = f"{doc['spec']['group']}/{version['name']}"
                made[doc["spec"]["names"]["kind"], name] = jsonschema.Draft202012Validator(schema)
    return made


def closed(schema: Any) -> Any:
    """A structural schema as the API server reads it: a key that it does not name is unknown."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    open_to_all = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    return inner | ({} if open_to_all or not isinstance(schema.get("properties"), dict) else {"additionalProperties": False})


def test_the_resources_of_others_are_as_their_crds_say() -> None:
    """Those of the Prometheus operator and of Strimzi; each kind is rendered by some value file."""
    schemas, seen = crd_schemas(), set()
    for file in CI:
        for doc in rendered(program("helm-4"), file):
            if doc["kind"] in EXTERNAL:
                schemas[doc["kind"], doc["apiVersion"]].validate(doc)
                seen.add(doc["kind"])
    assert seen == EXTERNAL


def test_a_crd_refuses_an_unknown_key() -> None:
    """So that the test above says something."""
    monitor = {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {"name": "x"}}
    monitor["spec"] = {"selector": {}, "endpoints": [{"prot": "metrics"}]}
    with pytest.raises(jsonschema.ValidationError, match="prot"):
        crd_schemas()["ServiceMonitor", "monitoring.coreos.com/v1"].validate(monitor)


NUMBERS = PIPELINE | {
    "seed": 2**53,
    "fields": [
        {"name": "x", "scale": 1e-3, "center": -2.5, "low": -1e100, "high": 1e19},
        {"name": "text", "type": "categorical", "categories": ['a"b\\c', "y", "1", "ü\U0001f600\n\x7f", "<&>"]},
        {"name": "size", "size": 3, "scale": 1e-7},
    ],
    "label": {"name": "bought", "type": "boolean"},
    "learner": {"kind": "aef-ocl", "prior": {"true": 0.25, "not true": 0.75}, "intercept": False},
    "labels": {"default": False, "horizon_ms": 3_600_000},
    "drift": {},
    "evaluate": {"share": 0.5},
}


def test_a_pipeline_arrives_as_it_was_given(helm: Path) -> None:
    """Numbers small, large, whole and not, texts with every kind of character, empty tables, lists of tables."""
    text = of_kind(tuple(docs(template(helm, values={"pipeline": NUMBERS}))), "ConfigMap", "-pipeline")["data"]["pipeline.toml"]
    assert tomllib.loads(text) == NUMBERS
    assert build_pipeline(tomllib.loads(text)).pipeline == build_pipeline(json.loads(json.dumps(NUMBERS))).pipeline


def test_numbers_of_yaml_arrive_as_numbers(helm: Path) -> None:
    """1e-3 is a text to some readers of YAML, and no pipeline of a value file is."""
    for file in CI:
        for doc in rendered(helm, file):
            if doc["kind"] == "ConfigMap" and "pipeline.toml" in doc["data"]:
                build_pipeline(tomllib.loads(doc["data"]["pipeline.toml"]))
    clicks = tomllib.loads(of_kind(rendered(helm, KAFKA), "ConfigMap", "-pipeline")["data"]["pipeline.toml"])
    assert (clicks["fields"][0]["scale"], clicks["learner"]["rate"], clicks["fields"][2]["categories"][2]) == (
        0.001,
        0.01,
        "no",
    )


@cases
def test_every_pod_is_restricted(file: Path) -> None:
    """As Pod Security's `restricted` asks, with a root that nobody writes, without a token, and bounded volumes."""
    pods = [pod for doc in rendered(program("helm-4"), file) for pod in pods_of(doc)]
    assert len(pods) >= 2
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            if container["name"] == "beside":  # the user's own
                continue
            allowed = container["securityContext"]
            assert allowed["allowPrivilegeEscalation"] is False and allowed["readOnlyRootFilesystem"] is True
            assert allowed["capabilities"] == {"drop": ["ALL"]}
            assert "cpu" not in container["resources"]["limits"]
        assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)


def pods_of(doc: Doc) -> list[Doc]:
    """The pods that an object makes."""
    if doc["kind"] == "Pod":
        return [doc["spec"]]
    spec = doc.get("spec") or {}
    template_of = spec.get("template") or spec.get("jobTemplate", {}).get("spec", {}).get("template")
    return [template_of["spec"]] if template_of else []


@cases
def test_no_other_pod_is_reached_by_the_service(file: Path) -> None:
    """Those of back-ups and tests have another component than the Services and the StatefulSet select."""
    objects = rendered(program("helm-4"), file)
    labels = of_kind(objects, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    others = [of_kind(objects, "Pod")["metadata"]["labels"]]
    others += [
        doc["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"] for doc in objects if doc["kind"] == "CronJob"
    ]
    for service in (doc for doc in objects if doc["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        assert selector <= labels.items()
        assert not any(selector <= other.items() for other in others)


def test_no_budget_for_disruptions_is_made() -> None:
    """Of a single pod it would block every drain."""
    kinds = {doc["kind"] for file in CI for doc in rendered(program("helm-4"), file)}
    assert "PodDisruptionBudget" not in kinds and "ServiceAccount" not in kinds


def test_topics_of_strimzi_keep_what_they_acknowledge() -> None:
    """By the product's own measure, and with the settings that it gives topics which it makes itself."""
    topics = {
        doc["spec"]["topicName"]: doc["spec"] for doc in rendered(program("helm-4"), KAFKA) if doc["kind"] == "KafkaTopic"
    }
    assert set(topics) == {f"clicks{end}" for end in ("", ".served", ".dead-letters", ".scores", ".journal.main", ".ledger")}
    for name, topic in topics.items():
        settings = {key: json.dumps(value).strip('"') for key, value in topic["config"].items()}
        assert weak(3, topic["replicas"], settings) == []
        assert settings["max.message.bytes"] == str(MESSAGE_BYTES)
        if name.endswith((".journal.main", ".ledger")):
            assert settings.items() >= FOREVER.items() and topic["partitions"] == 1


def test_the_chart_is_of_the_release_that_it_installs() -> None:
    """Its appVersion, by which the image's tag is chosen."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
