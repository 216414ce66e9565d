"""A language model that answers while its draft is learned: real vLLM, real Ray Serve, HAProxy, and the `openai` client."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from answered import answers, pair_folder, prompts
from llm_engine import SETTINGS
from pages import Reader, blocks, reading
from pipelines import ANSWER_S, MILLRACE, here, json_lines
from served_pipeline import Up, starting, until

from millrace.learners.draft.completion import Completion, unpack
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.proof.certify import prove_version

pytestmark = [pytest.mark.llm, pytest.mark.slow, pytest.mark.xdist_group("llm")]

MOST = 40  # tokens of an answer
BATCH = 16  # completions that are learned at once, as the page has it
PAGE = "docs/how-to/distil-a-draft.md"
OF_PAGE = 2  # completions that the page itself asks for
CHAT, SQL = 80, 280  # further ones that are learned
POOL = 4000  # prompts of each domain
ASKED = 32  # prompts that are asked to see how a draft does; each is asked once
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
        return shuffled(domain)[start : start + count]

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

    def tau(self, domain: str, temperature: float = 0.0) -> float:
        """Tokens a step on unseen prompts of a domain, none of which is learned."""
        replies = self.ask(self.fresh(domain, ASKED), OFF, temperature)
        steps = [step for reply in replies for step in accepted(reply)]
        return 1.0 + sum(steps) / len(steps)


@cache
def shuffled(domain: str) -> list[str]:
    """Prompts in an order of their own: neighbours of the data set ask about the same tables."""
    texts = prompts(domain, POOL)
    random.Random(1).shuffle(texts)
    return texts


def accepted(reply: Any) -> list[int]:
    """Of each step of an answer."""
    return list(reply.model_extra["metrics"]["speculative_decoding"]["per_step_accepted"])


def tokens(reply: Any) -> list[int]:
    """Of an answer."""
    return list(reply.choices[0].model_extra["token_ids"])


@contextmanager
def serving(folder: Path, file: str, _words: Sequence[str], found: list[Up]) -> Iterator[dict[str, str]]:
    """`millrace up` of the page, from the moment that it answers; answers have their counts, and two versions come of it."""
    more = ("--set", "llm.show_counts=true", "--set", f"worker.version_rows={(CHAT + SQL) // 2}")
    up_log = folder / "up.log"
    with starting(folder, *more, millrace=MILLRACE, file=file) as running:
        until(lambda: running.process.poll() is not None or b"Ctrl-C" in up_log.read_bytes())
        assert running.process.poll() is None, up_log.read_text()
        found.append(running)
        yield {"localhost:8000": f"127.0.0.1:{running.port}"}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, Up]]:
    """Somebody who has done what the page says until the first answers came, with `millrace up` still at work."""
    folder, patch, found = tmp_path_factory.mktemp("served"), pytest.MonkeyPatch(), list[Up]()
    for name in ("target", "draft"):
        (folder / name).symlink_to(pair_folder({"draft": "draft_chat"}.get(name, name)))
    for name, value in SETTINGS.items():
        patch.setenv(name, value)
    with reading(folder, serve=lambda *place: serving(*place, found)) as reader:
        for block in blocks(PAGE)[:4]:
            reader.play(block)
        assert reader.printed[-1].count("SELECT") == OF_PAGE, reader.printed
        yield reader, found[0]
    patch.undo()


@pytest.fixture
def up(read: tuple[Reader, Up]) -> Up:
    """What serves."""
    return read[1]


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
    before = {domain: caller.tau(domain) for domain in ("chat", "sql")} | {"drawn": caller.tau("sql", 1.0)}
    assert before["sql"] < 1.15 and before["chat"] > 1.5
    for domain, count in (("chat", CHAT), ("sql", SQL)):
        caller.ask(caller.fresh(domain, count), {"millrace-domain": domain})
    first = str(facts(up)["serves_default"])
    until(lambda: learned(up)[-1][1] >= CHAT + SQL - 2 * BATCH)  # those of a batch that was not full are in the next
    newest = learned(up)[-1][0]
    texts = caller.fresh("sql", 64)
    with load(caller, texts) as replies:
        until(lambda: len(captured(up)) > OF_PAGE + CHAT + SQL + 8)
        decide(up, "serve", newest)
    assert [tokens(reply) for reply in replies] == [answer for _, answer in answers(texts, most=MOST)]
    spanning = [each for each in captured(up) if "swap" in each.header.flags]
    assert spanning and {each.header.seq for each in captured(up)} >= {seq_of(first), seq_of(newest)}
    after = {domain: caller.tau(domain) for domain in ("chat", "sql")} | {"drawn": caller.tau("sql", 1.0)}
    assert after["sql"] >= 1.5 and after["chat"] >= 0.8 * before["chat"] and after["drawn"] > before["drawn"], (before, after)
    assert len(captured(up)) == OF_PAGE + CHAT + SQL + len(texts)
    decide(up, "rollback", first)
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


def test_the_rest_of_the_page_holds(read: tuple[Reader, Up]) -> None:
    """Drafts by domain, the newest served and gone back from; each block in order, on what was served until now."""
    reader, _ = read
    for block in blocks(PAGE)[4:]:
        reader.play(block)
