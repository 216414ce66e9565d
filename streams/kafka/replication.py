"""What a topic's replication is worth: whether what it has acknowledged outlives a broker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache

from millrace.learners.errors import ConfigError
from millrace.streams.kafka.client import Link

log = logging.getLogger("millrace")


def check_replication(link: Link, topic: str, settings: Mapping[str, str], must: bool) -> None:
    """Look at a topic that is there, by its settings ``settings``; what is weak about it is said, once a process.

    Raises: ConfigError where it ``must`` keep what it has acknowledged, and the pipeline file asks for replicas.
    """
    replication = link.cluster.replication
    if not (weaknesses := weak(replication, link.replicas(topic), settings)):
        return
    text = (
        f"Topic {topic} may lose what it has acknowledged, or take nothing: {', '.join(weaknesses)}. Give it replicas with "
        "kafka-reassign-partitions, and other settings with kafka-configs"
    )
    if must and replication > 1:
        raise ConfigError(f"{text}; or ask for less with log.kafka.replication in the pipeline file.")
    _warn(f"{text}.")


def weak(replication: int, replicas: int, settings: Mapping[str, str]) -> list[str]:
    """Each thing that is, with its value. A broker before Kafka 3.7 takes nothing where fewer replicas are there than
    ``min.insync.replicas``; newer ones go by those that there are.

    >>> weak(3, 3, {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"}), weak(0, 1, {})
    ([], [])
    >>> weak(3, 1, {"min.insync.replicas": "2"})
    ['1 of the 3 replicas of log.kafka.replication', 'min.insync.replicas = 2 with replicas = 1']
    >>> weak(0, 3, {"min.insync.replicas": "1", "unclean.leader.election.enable": "true"})
    ['min.insync.replicas = 1 with replicas = 3', 'unclean.leader.election.enable = true']
    """
    insync = int(settings.get("min.insync.replicas", "0"))  # not every broker that speaks Kafka's protocol has it
    weaknesses = {
        f"{replicas} of the {replication} replicas of log.kafka.replication": replicas < replication,
        f"min.insync.replicas = {insync} with replicas = {replicas}": insync > replicas or (insync == 1 and replicas >= 3),
        "unclean.leader.election.enable = true": settings.get("unclean.leader.election.enable") == "true",
    }
    return [text for text, is_weak in weaknesses.items() if is_weak]


@cache
def _warn(text: str) -> None:
    log.warning("%s", text)
