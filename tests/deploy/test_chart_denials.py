"""What `helm install` refuses, each in one sentence that names the key; and what no YAML can tell it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from charts import CHART, docs, of_kind, refusal, run, template
from refused import NAMED, REFUSED

KAFKA, EVERYTHING = CHART / "ci" / "kafka-values.yaml", CHART / "ci" / "everything-values.yaml"
OWN_MAP = CHART / "ci" / "own-config-map-values.yaml"

BY_SCHEMA: dict[str, tuple[dict[str, Any], str]] = {  # values beside the smallest ones, and what is said
    "unknown value": ({"replica": 1}, "- at '': additional properties 'replica' not allowed"),
    "unknown value below": ({"image": {"tagg": "x"}}, "- at '/image': additional properties 'tagg' not allowed"),
    "two replicas": ({"replicas": 2}, "- at '/replicas': value must be one of 0, 1"),
    "name": (
        {"pipeline": {"name": "Spam_1"}},
        "- at '/pipeline/name': 'Spam_1' does not match pattern '^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'",
    ),
    "one process": ({"serving": {"replicas": 1}}, "- at '/serving/replicas': minimum: got 1, want 2"),
    "no list": ({"tolerations": {}}, "- at '/tolerations': got object, want array"),
    "kubernetes' keys": (
        {"affinity": {"nodeAfinity": {}}},
        "- at '/affinity': additional properties 'nodeAfinity' not allowed",
    ),
    "a boolean for a name": ({"pipeline": {"label": {"name": True}}}, "- at '/pipeline/label/name': got boolean, want string"),
    "a digest": (
        {"image": {"digest": "latest"}},
        "- at '/image/digest': 'latest' does not match pattern '^(sha256:[0-9a-f]{64})?$'",
    ),
}

BY_CHECK: dict[str, tuple[Path, dict[str, Any], str]] = {  # the same beside a file's, of what a schema cannot say
    "no pipeline": (OWN_MAP, {"existingConfigMap": ""}, "pipeline: say what is learned, as a pipeline file does, or name"),
    "two pipelines": (
        KAFKA,
        {"existingConfigMap": "x"},
        "existingConfigMap: there is a pipeline beside it; give one of the two.",
    ),
    "no password": (
        KAFKA,
        {"kafka": {"existingSecret": ""}},
        "kafka.existingSecret: pipeline.log.kafka.security_protocol = SASL_SSL needs a password; name the Secret that has it.",
    ),
    "memory": (
        KAFKA,
        {"resources": {"limits": {"memory": "1535Mi"}}},
        "resources.limits.memory = 1535Mi: with serving.replicas = 2 it must be at least 1536Mi.",
    ),
    "memory of more processes": (
        KAFKA,
        {"serving": {"replicas": 16}, "resources": {"limits": {"memory": "3.2G"}}},
        "resources.limits.memory = 3.2G: with serving.replicas = 16 it must be at least 3328Mi.",
    ),
    "requested memory": (
        KAFKA,
        {"resources": {"requests": {"memory": "512Mi"}}},
        "resources.requests.memory = 512Mi: with serving.replicas = 2 it must be at least 1536Mi.",
    ),
    "shared memory": (
        KAFKA,
        {"sharedMemory": "79Mi"},
        "sharedMemory = 79Mi: Ray's object store is there; it must be at least 80Mi.",
    ),
    "ports": (KAFKA, {"service": {"grpc": 8000}}, "service.grpc = 8000: service.http is the same; give each its own."),
    "copies without a place": (
        KAFKA,
        {"backup": {"enabled": True}},
        "backup.existingClaim: name the claim that back-ups are to lie in.",
    ),
    "a copy without a place": (
        KAFKA,
        {"backup": {"restore": "latest"}},
        "backup.existingClaim: name the claim that the back-up of backup.restore lies in.",
    ),
    "copies of a claim for one pod": (
        EVERYTHING,
        {"persistence": {"accessMode": "ReadWriteOncePod"}},
        "backup.enabled: a back-up is a second pod on the claim, which persistence.accessMode = ReadWriteOncePod shuts out;",
    ),
    "topics without kafka": (
        EVERYTHING,
        {"strimzi": {"enabled": True, "cluster": "main"}},
        "strimzi.enabled: it makes the topics of a pipeline on Kafka; set pipeline.log.kind = kafka.",
    ),
    "topics without a cluster": (
        KAFKA,
        {"strimzi": {"cluster": ""}},
        "strimzi.cluster: name the Kafka object of Strimzi that is to have the topics.",
    ),
    "no host": (EVERYTHING, {"ingress": {"grpc": {"hosts": []}}}, "ingress.grpc.hosts: name at least one host."),
}


@pytest.mark.parametrize("case", BY_SCHEMA)
def test_a_value_that_the_schema_does_not_have_is_refused_by_its_key(case: str, helm: Path) -> None:
    """In one line of Helm's."""
    values, sentence = BY_SCHEMA[case]
    assert refusal(helm, values) == sentence


@pytest.mark.parametrize("case", BY_CHECK)
def test_a_value_that_does_not_go_with_another_is_refused_by_its_key(case: str, helm: Path) -> None:
    """In one sentence of ours, at the end of Helm's."""
    file, values, sentence = BY_CHECK[case]
    said = refusal(helm, values, file)
    where, _, told = said.partition("): ")
    assert where.startswith("Error: execution error at (millrace/templates/statefulset.yaml") and told.startswith(sentence)


@pytest.mark.parametrize("key", REFUSED)
def test_helm_names_the_key_that_config_show_refuses(key: str, helm: Path) -> None:
    """Or the table that lacks it."""
    done = run(helm, "template", "rel", "CHART", values={"pipeline": REFUSED[key]})
    assert done.returncode == 1 and "values don't meet the specifications" in done.stderr
    assert NAMED.get(key, key) in done.stderr.partition("millrace:")[2]


def test_memory_that_is_enough_is_taken(helm: Path) -> None:
    """At the bound itself, in other units, and without a limit."""
    for limits in ({"memory": "1536Mi"}, {"memory": "1.5Gi"}, {"memory": 1610612736}, {"memory": "1650M"}):
        assert refusal(helm, {"resources": {"limits": limits, "requests": {"memory": "1536Mi"}}}) == ""
    assert refusal(helm, {"resources": {"limits": None, "requests": None}}) == ""


def test_keys_of_helm_and_of_charts_around_are_taken(helm: Path) -> None:
    """`global` is open, for every chart of a tree gets it."""
    assert refusal(helm, {"global": {"imageRegistry": "x", "deep": {"er": [1]}}}) == ""


def test_it_is_installed_once_as_a_dependency_of_another(helm: Path, tmp_path: Path) -> None:
    """Its values stand below its name there, and a wrong one is refused by that path."""
    around = tmp_path / "around"
    (around / "charts").mkdir(parents=True)
    (around / "charts" / "millrace").symlink_to(CHART)
    (around / "Chart.yaml").write_text("apiVersion: v2\nname: around\nversion: 1.0.0\n", encoding="utf-8")
    pipeline = {"name": "p", "fields": [{"name": "x"}], "label": {"name": "y"}, "learner": {"kind": "ridge"}}
    values = {"global": {"team": "models"}, "millrace": {"pipeline": pipeline}}
    assert (
        of_kind(tuple(docs(template(helm, values=values, chart=around))), "StatefulSet")["metadata"]["name"] == "rel-millrace"
    )
    done = run(helm, "template", "rel", "CHART", chart=around, values={"millrace": {"pipeline": pipeline | {"sead": 1}}})
    assert "additional properties 'sead' not allowed" in done.stderr
