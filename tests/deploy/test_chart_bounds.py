"""Times and sizes in the chart that follow from the code: how long a pod may take to end, and what Ray needs in memory."""

from __future__ import annotations

import re
from functools import reduce

import click
from charts import CHART, of_kind, program, rendered

from millrace.services.cli import main
from millrace.services.metrics import page
from millrace.services.serving import alive, ending
from millrace.services.serving.shared_memory import LEAST_MIB, MOST_MIB, SHARE

EMBEDDED, EVERYTHING = (CHART / "ci" / f"{name}-values.yaml" for name in ("embedded", "everything"))


def test_a_pod_has_as_long_to_end_as_the_code_may_take() -> None:
    """preStop, drain, and what `millrace up` waits for; preStop alone where it hangs, for then it does not end by itself."""
    pod = of_kind(rendered(program("helm-4"), EVERYTHING), "StatefulSet")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    pre_stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] == pre_stop_s + 8 + ending.END_S  # 7.5 s of drain
    assert container["livenessProbe"]["terminationGracePeriodSeconds"] > pre_stop_s


def test_liveness_asks_up_itself_at_a_path_and_port_that_it_has() -> None:
    """Not the replicas, as readiness does; and the probe waits for longer than the answer may take."""
    container = of_kind(rendered(program("helm-4"), EMBEDDED), "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert probes["liveness"] == {"path": page.LIVE_PATH, "port": "metrics"}
    assert f"--metrics-port={ports['metrics']}" in container["args"] and "--metrics-host=0.0.0.0" in container["args"]
    assert probes["startup"] == probes["readiness"] == {"path": "/readyz", "port": "http"}
    assert container["livenessProbe"]["timeoutSeconds"] > alive.FRONT_S


def test_ray_has_room_for_its_objects_in_shared_memory() -> None:
    """All that it can use by default, and what it needs at least where the check draws the line."""
    pod = of_kind(rendered(program("helm-4"), EMBEDDED), "StatefulSet")["spec"]["template"]["spec"]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "shared-memory"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "384Mi"}
    assert SHARE * 384 >= MOST_MIB
    checks = (CHART / "templates" / "_checks.tpl").read_text(encoding="utf-8")
    assert re.findall(r"it must be at least (\d+)Mi", checks) == [str(LEAST_MIB)]


def test_up_takes_every_argument() -> None:
    """And `config show`, before it; each file has the options that differ."""
    for file in (EMBEDDED, EVERYTHING):
        pod = of_kind(rendered(program("helm-4"), file), "StatefulSet")["spec"]["template"]["spec"]
        check = next(container for container in pod["initContainers"] if container["name"] == "check")
        for words in (check["args"], pod["containers"][0]["args"]):
            at = words.index("/etc/millrace/pipeline.toml")
            command: click.Command = reduce(lambda group, word: group.commands[word], words[:at], main)
            offered = {option for parameter in command.params for option in parameter.opts}
            assert {word.partition("=")[0] for word in words[at + 1 :]} <= offered
