"""Times and sizes in the chart that follow from the code: how long a pod may take to end, and what Ray needs in memory."""

from __future__ import annotations

import re
from functools import reduce

import click
from charts import CHART, of_kind, program, rendered

from millrace.services.cli import main
from millrace.services.serving import front, replica, up
from millrace.services.serving.shared_memory import LEAST_MIB, MOST_MIB, SHARE

EMBEDDED, EVERYTHING = (CHART / "ci" / f"{name}-values.yaml" for name in ("embedded", "everything"))


def test_a_pod_has_as_long_to_end_as_the_code_may_take() -> None:
    """preStop, drain, the front, the replicas, two rounds of trainers, and 20 s for Ray."""
    pod = of_kind(rendered(program("helm-4"), EVERYTHING), "StatefulSet")["spec"]["template"]["spec"]
    pre_stop_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    replicas_s = replica.GRACE_S + replica.EMPTY_S + 5
    needed_s = pre_stop_s + 8 + front.STOP_S + replicas_s + 2 * (up.STOP_S + 5) + 20  # 7.5 s of drain
    assert pod["terminationGracePeriodSeconds"] == needed_s


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
