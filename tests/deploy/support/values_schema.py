"""The chart's values.schema.json, made from the records of a pipeline file, from what is below, and from Kubernetes' own types.

`make reference` writes it anew. It is closed at every level but Helm's own ``global`` and whole objects of other kinds
(``extraObjects``), which only the API server knows.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline_schema import Schema, pipeline_schema

CHART = Path(__file__).resolve().parents[3] / "deploy" / "helm" / "millrace"
PATH = CHART / "values.schema.json"
KUBERNETES = "1.37.0"  # whose types the extra ones are: the newest that kubernetes-validate has

TEXT: Schema = {"type": "string"}
TRUTH: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}  # labels, annotations, selectors
WORDS: Schema = {"type": "array", "items": TEXT}
OBJECT: Schema = {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "maxLength": 253}  # a name, or none
QUANTITY: Schema = {"type": ["string", "integer"], "pattern": "^[0-9]+(\\.[0-9]+)?([EPTGMk]i?|Ki|m)?$"}
DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|[smhd]))*$"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}


def closed(**properties: Schema) -> Schema:
    """An object with these keys and no other."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def kubernetes(name: str) -> Schema:
    """A type of core/v1, by its name there."""
    return {"$ref": f"#/$defs/io.k8s.api.core.v1.{name}"}


def networking(name: str) -> Schema:
    """A type of networking.k8s.io/v1."""
    return {"$ref": f"#/$defs/io.k8s.api.networking.v1.{name}"}


def many(item: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": item}


def ingress() -> Schema:
    """Of one protocol."""
    tls = many(networking("IngressTLS"))
    return closed(enabled=TRUTH, className=OBJECT, annotations=TEXTS, hosts=many({"type": "string", "minLength": 1}), tls=tls)


PEERS = ("from", "metricsFrom", "dnsTo", "kafkaTo", "mlflowTo", "registryTo")
SECONDS: Schema = {"type": "integer", "minimum": 1}
RELABELING = closed(  # as the Prometheus operator has it
    action=TEXT,
    modulus={"type": "integer"},
    regex=TEXT,
    replacement=TEXT,
    separator=TEXT,
    sourceLabels=WORDS,
    targetLabel=TEXT,
)
TENSOR = closed(name=TEXT, datatype=TEXT, shape=many({"type": "integer"}), data={"type": "array"}) | {
    "required": ["name", "datatype", "shape", "data"]
}


def own_values() -> dict[str, Schema]:
    """The chart's keys, in the order of values.yaml."""
    names = {key: OBJECT | {"maxLength": 45} for key in ("nameOverride", "fullnameOverride")}
    return names | _what_runs() | _around_it() | _pod()


def _what_runs() -> dict[str, Schema]:
    """The pipeline, its image, and its secrets."""
    return {
        "replicas": {"enum": [0, 1]},
        "pipeline": {"type": "object", "if": {"minProperties": 1}, "then": {"$ref": "#/$defs/pipeline"}},
        "existingConfigMap": OBJECT,
        "image": closed(
            repository={"type": "string", "minLength": 1},
            tag=TEXT,
            digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
            pullSecrets=many(kubernetes("LocalObjectReference")),
        ),
        "serving": closed(
            replicas={"type": "integer", "minimum": 2, "maximum": 64},
            drainSeconds={"type": "number", "minimum": 0, "maximum": 3600},
            logFormat={"enum": ["json", "text"]},
        ),
        "auth": closed(existingSecret=OBJECT, key={"type": "string", "pattern": "^[-._a-zA-Z0-9]+$"}),
        "kafka": closed(existingSecret=OBJECT, passwordKey=TEXT, keyPasswordKey=TEXT, tlsSecret=OBJECT),
        "mlflow": closed(existingSecret=OBJECT),
        "lookups": TRUTH,
    }


def _around_it() -> dict[str, Schema]:
    """Objects beside the pod."""
    return {
        "service": closed(type={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, annotations=TEXTS, http=PORT, grpc=PORT),
        "ingress": closed(http=ingress(), grpc=ingress()),
        "networkPolicy": closed(
            enabled=TRUTH,
            **{key: many(networking("NetworkPolicyPeer")) for key in PEERS},
            kafkaPorts=many(PORT),
            egress=many(networking("NetworkPolicyEgressRule")),
        ),
        "metrics": closed(
            serviceMonitor=closed(
                enabled=TRUTH,
                interval=DURATION,
                scrapeTimeout=DURATION,
                labels=TEXTS,
                relabelings=many(RELABELING),
                metricRelabelings=many(RELABELING),
            ),
            prometheusRule=closed(enabled=TRUTH, labels=TEXTS, lagSeconds=SECONDS, staleSeconds=SECONDS),
        ),
        "strimzi": closed(enabled=TRUTH, cluster=OBJECT, user=TRUTH),
        "backup": closed(
            enabled=TRUTH,
            schedule={"type": "string", "minLength": 1},
            existingClaim=OBJECT,
            keep={"type": "integer", "minimum": 1},
            restore={"type": "string", "pattern": "^(latest|[0-9TZ.-]+)?$"},
            resources=kubernetes("ResourceRequirements"),
        ),
        "tests": closed(inputs=many(TENSOR)),
    }


def _pod() -> dict[str, Schema]:
    """Its storage, its bounds, and what is put into it."""
    return {
        "persistence": closed(
            existingClaim=OBJECT,
            size=QUANTITY,
            storageClass=OBJECT,
            accessMode={"enum": ["ReadWriteOnce", "ReadWriteOncePod"]},
            annotations=TEXTS,
        ),
        "sharedMemory": QUANTITY,
        "temporary": QUANTITY,
        "resources": kubernetes("ResourceRequirements"),
        "podSecurityContext": kubernetes("PodSecurityContext"),
        "securityContext": kubernetes("SecurityContext"),
        "serviceAccountName": OBJECT,
        "priorityClassName": OBJECT,
        "nodeSelector": TEXTS,
        "tolerations": many(kubernetes("Toleration")),
        "affinity": kubernetes("Affinity"),
        "podLabels": TEXTS,
        "podAnnotations": TEXTS,
        "extraEnv": many(kubernetes("EnvVar")),
        "extraEnvFrom": many(kubernetes("EnvFromSource")),
        "extraArgs": WORDS,
        "extraVolumes": many(kubernetes("Volume")),
        "extraVolumeMounts": many(kubernetes("VolumeMount")),
        "extraContainers": many(kubernetes("Container")),
        "extraObjects": many({"type": "object", "required": ["apiVersion", "kind", "metadata"]}),
        "global": {"type": "object"},  # Helm's own: what a chart around this one says to all
    }


def core_types() -> dict[str, Schema]:
    """Kubernetes' strict definitions, without their descriptions."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}-local-strict"
    definitions: dict[str, Schema] = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))["$defs"]
    return {name: _bare(schema) for name, schema in definitions.items()}


def _bare(schema: Any) -> Any:
    if isinstance(schema, dict):
        noise = {
            key
            for key, value in schema.items()
            if key.startswith("x-kubernetes") or (key == "description" and isinstance(value, str))
        }
        return {key: _bare(value) for key, value in schema.items() if key not in noise}
    return [_bare(item) for item in schema] if isinstance(schema, list) else schema


def referred(schema: Any) -> set[str]:
    """The definitions that a schema names."""
    if isinstance(schema, dict):
        own = {schema["$ref"].rsplit("/", 1)[1]} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*(referred(value) for value in schema.values()))
    return set().union(*map(referred, schema)) if isinstance(schema, list) else set()


def values_schema() -> Schema:
    """All of it."""
    offered = pipeline_schema() | core_types()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of the chart millrace"}
    schema |= closed(**own_values())
    used: dict[str, Schema] = {}
    while missing := referred([schema, used]) - used.keys():
        used |= {name: offered[name] for name in missing}
    return schema | {"$defs": dict(sorted(used.items()))}


def text() -> str:
    """As it stands in the file."""
    return json.dumps(values_schema(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the file anew."""
    old = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    PATH.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{PATH.name}{'' if text() == old else ' changed'}\n")


if __name__ == "__main__":
    main()
