"""A language model that answers while its draft is learned: real vLLM, real Ray Serve, HAProxy, and the `openai` client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from answered import TOP, K, answers, pair_folder, prompts
from llm_engine import EAGER, SETTINGS
from pipelines import ANSWER_S, MILLRACE, here, json_lines
from served_pipeline import Up, starting, until

from millrace.learners.draft.completion import Completion, unpack
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.proof.certify import prove_version

pytestmark = [pytest.mark.llm, pytest.mark.slow, pytest.mark.xdist_group("llm")]

MOST = 40  # tokens of an answer
BATCH = 16  # completions that are learned at once
TEXT = f"""name = "answers"
seed = 3
[llm]
target = "{{target}}"
draft = "{{draft}}"
capture = "all"
k = {K}
top = {TOP}
show_counts = true
options = {json.dumps(list(EAGER))}
[learner]
kind = "draft"
rate = 3e-3
[batch]
rows = {BATCH}
[worker]
version_rows = {{rows}}
[versions]
verify_budget_s = 0
"""
CHAT, SQL = 48, 208  # completions that are learned
ASKED = 24  # prompts that are asked to see how a draft does; each is asked once
OFF = {"millrace-capture": "off"}


@dataclass
class Caller:
    """One that uses the `openai` client, eight requests at a time; no prompt is asked twice."""

    up: Up
    next: dict[str, int] = field(default_factory=lambda: {"chat": 0, "sql": 0})

    def fresh(self, domain: str, count: int) -> list[str]:
        """Prompts that nobody has asked yet."""
        start = self.next[domain]
        self.next[domain] = start + count
        return prompts(domain, count, start)

    def ask(self, texts: list[str], headers: dict[str, str], temperature: float = 0.0) -> list[Any]:
        """The answers, in order."""
        from openai import OpenAI

        with (
            OpenAI(base_url=f"http://127.0.0.1:{self.up.port}/v1", api_key="none", timeout=ANSWER_S, max_retries=0) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            create = client.with_options(default_headers=headers).completions.create
            more = {"return_token_ids": True}
            return list(
                pool.map(
                    lambda text: create(
                        model="answers", prompt=text, max_tokens=MOST, temperature=temperature, extra_body=more
                    ),
                    texts,
                )
            )

    def tau(self, domain: str) -> float:
        """Tokens a step on unseen prompts of a domain, none of which is learned."""
        replies = self.ask(self.fresh(domain, ASKED), OFF)
        steps = [step for reply in replies for step in accepted(reply)]
        return 1.0 + sum(steps) / len(steps)


def accepted(reply: Any) -> list[int]:
    """Of each step of an answer."""
    return list(reply.model_extra["metrics"]["speculative_decoding"]["per_step_accepted"])


def tokens(reply: Any) -> list[int]:
    """Of an answer."""
    return list(reply.choices[0].model_extra["token_ids"])


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`millrace up` with one replica, from the moment that it answers."""
    folder, patch = tmp_path_factory.mktemp("served"), pytest.MonkeyPatch()
    target, draft = pair_folder("target"), pair_folder("draft_chat")
    (folder / "llm.toml").write_text(TEXT.format(target=target, draft=draft, rows=(CHAT + SQL) // 2))
    for name, value in SETTINGS.items():
        patch.setenv(name, value)
    up_log = folder / "up.log"
    with starting(folder, "--metrics-port", "0", millrace=MILLRACE, file="llm.toml") as running:
        until(lambda: running.process.poll() is not None or b"Ctrl-C" in up_log.read_bytes())
        assert running.process.poll() is None, up_log.read_text()
        yield running
    patch.undo()


def facts(up: Up) -> dict[str, Any]:
    """What `millrace status` says."""
    done = here("status", "llm.toml", "--output", "json", cwd=up.folder)
    return {str(line["what"]): line["value"] for line in json_lines(done.stdout)}


def instance(up: Up) -> Instance:
    """The pipeline that is served."""
    return Instance(load_pipeline(up.folder / "llm.toml"), up.folder / ".millrace" / "answers")


def captured(up: Up) -> list[Completion]:
    """All completions that the log has."""
    log, topic = instance(up).log(), instance(up).loaded.pipeline.topic
    source = instance(up).source([topic])
    assert log.bounds(f"{topic}:0")[0] == 0
    values: list[bytes] = []
    while reads := source.next_batch(4096):
        values += [event.value for read in reads for event in read.events if event.value is not None]
    return [unpack(value) for value in values]


def decide(up: Up, *words: str) -> None:
    """A decision, followed by the replica."""
    assert here(words[0], "llm.toml", *words[1:], "--reason", "test", "--yes", cwd=up.folder).exit_code == 0
    target = facts(up)["serves_default"]
    until(lambda: f"{target}; told to serve version {target};" in str(facts(up)["replica_1"]))


@contextmanager
def load(caller: Caller, texts: list[str]) -> Iterator[list[Any]]:
    """Those prompts are asked while the block runs, and all answered at its end."""
    replies: list[Any] = []
    thread = threading.Thread(target=lambda: replies.extend(caller.ask(texts, {"millrace-domain": "sql"})))
    thread.start()
    try:
        yield replies
    finally:
        thread.join()


def test_a_draft_is_learned_while_it_serves_and_swapped_under_load_and_back(up: Up) -> None:
    """Chat, then SQL: tau on unseen SQL goes from about 1 to 1.5 and more, on unseen chat it keeps 0.8; a rollback undoes it.

    No prompt is asked twice. At temperature 0 each answer is the target's own by transformers, of requests that a swap touches
    too. What is asked with capture off is not learned. Both versions are proved.
    """
    caller = Caller(up)
    before = {domain: caller.tau(domain) for domain in ("chat", "sql")}
    assert before["sql"] < 1.15 and before["chat"] > 1.5
    for domain, count in (("chat", CHAT), ("sql", SQL)):
        caller.ask(caller.fresh(domain, count), {"millrace-domain": domain})
    first = str(facts(up)["serves_default"])
    until(lambda: learned(up)[-1][1] > CHAT + SQL - BATCH)  # those of a batch that was not full yet are in the next
    newest = learned(up)[-1][0]
    texts = caller.fresh("sql", 64)
    with load(caller, texts) as replies:
        until(lambda: len(captured(up)) > CHAT + SQL + 8)
        decide(up, "serve", newest)
    assert [tokens(reply) for reply in replies] == [answer for _, answer in answers(texts, most=MOST)]
    spanning = [each for each in captured(up) if "swap" in each.header.flags]
    assert spanning and {each.header.seq for each in captured(up)} >= {seq_of(first), seq_of(newest)}
    after = {domain: caller.tau(domain) for domain in ("chat", "sql")}
    assert after["sql"] >= 1.5 and after["chat"] >= 0.8 * before["chat"]
    assert len(captured(up)) == CHAT + SQL + len(texts)
    decide(up, "rollback")
    back = caller.tau("sql")
    assert back < 1.15
    reports = [prove_version(instance(up), version) for version in (first, newest)]
    assert all(report.proved and not report.findings for report in reports)
    print(json.dumps({"before": before, "after": after, "back": back, "spanning": len(spanning)}))


def learned(up: Up) -> list[tuple[str, int]]:
    """Versions, and how many completions each has learned."""
    done = here("versions", "llm.toml", "--output", "json", cwd=up.folder)
    return [(str(line["version"]), int(str(line["learned"]))) for line in json_lines(done.stdout)]


def seq_of(version: str) -> int:
    """Of a version's state."""
    return int(version.rpartition(".")[2])
