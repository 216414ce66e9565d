"""A language model that answers while its draft is learned: real vLLM, real Ray Serve, HAProxy, and the `openai` client."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
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
CHAT, SQL = 62, 288  # further ones that are learned
LEARNED = OF_PAGE + CHAT + SQL  # whole batches
WAVE = 4  # completions that come at a time while a draft learns, as many as it takes a step after
POOL = 4000  # prompts of each domain
ASKED = 32  # prompts that are asked to see how a draft does; each is asked once
AT_ONCE = 8  # requests
TOKENS = {"return_token_ids": True}
OFF = {"millrace-capture": "off"}


@dataclass
class Caller:
    """One that uses the `openai` client, some requests at a time; no prompt is asked twice."""

    up: Up
    next: dict[str, int] = field(default_factory=lambda: {"chat": 0, "sql": 0})
    greedy: list[tuple[str, list[int]]] = field(default_factory=list)  # prompts at temperature 0, and the answers' tokens

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
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            create = client.with_options(default_headers=headers).completions.create
            asked = partial(create, model="answers", max_tokens=MOST, temperature=temperature, extra_body=TOKENS)
            replies = list(pool.map(lambda text: asked(prompt=text), texts))
        if not temperature:
            self.greedy += zip(texts, map(tokens, replies), strict=True)
        return replies

    def teach(self, domain: str, count: int) -> None:
        """Wave after wave, so that what a draft learns at a step is the same in each run."""
        texts = self.fresh(domain, count)
        for start in range(-(count % WAVE), count, WAVE):  # what the page asked is of the first wave
            self.ask(texts[max(start, 0) : start + WAVE], {"millrace-domain": domain})

    def go_on(self, texts: list[str], over: threading.Event) -> int:
        """Prompts of SQL one by one, until it is over; how many."""
        for asked, text in enumerate(texts):
            if over.is_set():
                return asked
            self.ask([text], {"millrace-domain": "sql"})
        raise AssertionError(f"{len(texts)} prompts were not enough")

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
    """`millrace up` of the page, from the moment that it answers; answers have their counts, and a version comes of it."""
    more = ("--set", "llm.show_counts=true", "--set", f"worker.version_rows={LEARNED}")
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
def load(caller: Caller) -> Iterator[list[Future[int]]]:
    """SQL is asked while the block runs, several at any time; how many answers each caller had is there behind it."""
    over, texts = threading.Event(), shuffled("sql")[POOL // 2 :]  # so that others are the same in each run
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(caller.go_on, texts[first::AT_ONCE], over) for first in range(AT_ONCE)]
        try:
            yield asked
        finally:
            over.set()


def spanning(up: Up) -> int:
    """Completions that a swap touched."""
    return sum("swap" in each.header.flags for each in captured(up))


def test_a_draft_is_learned_while_it_serves_and_swapped_under_load_and_back(up: Up) -> None:
    """Chat, then SQL: tau on unseen SQL goes from about 1 to 1.4 and more, on unseen chat it keeps 0.7; a rollback undoes it.

    No prompt is asked twice. At temperature 0 each answer is the target's own by transformers, of requests that a swap touches
    too. What is asked with capture off is not learned. Both versions are proved.
    """
    caller = Caller(up)
    figures = {"before": taus(caller)}
    caller.teach("chat", CHAT)
    caller.teach("sql", SQL)
    first = str(facts(up)["serves_default"])
    until(lambda: learned(up)[-1][1] >= LEARNED - BATCH)  # the last ones may be of the next version
    newest, taught = learned(up)[-1][0], captured(up)
    with load(caller) as asked:
        until(lambda: len(captured(up)) > LEARNED + AT_ONCE)
        decide(up, "serve", newest)
        until(lambda: spanning(up))
    seen = captured(up)
    assert {each.header.seq for each in seen} >= {seq_of(first), seq_of(newest)}
    figures["after"] = taus(caller)
    assert len(captured(up)) == len(seen) == LEARNED + sum(each.result() for each in asked)
    decide(up, "rollback", first)
    figures["back"] = {"sql": caller.tau("sql")}
    reports = [prove_version(instance(up), version) for version in (first, newest)]
    assert all(report.proved and not report.findings for report in reports)
    print(json.dumps(figures | {"spanning": spanning(up), "compared": len(caller.greedy), "runs": len(taught)}))
    assert figures["before"]["sql"] < 1.2 and figures["back"]["sql"] < 1.2 and figures["before"]["chat"] > 1.5
    assert figures["after"]["sql"] >= 1.4 and figures["after"]["chat"] >= 0.7 * figures["before"]["chat"]
    check_answers(caller.greedy)


def taus(caller: Caller) -> dict[str, float]:
    """Of both domains, and of SQL at temperature 1."""
    return {"chat": caller.tau("chat"), "sql": caller.tau("sql"), "drawn": caller.tau("sql", 1.0)}


def check_answers(asked: Sequence[tuple[str, list[int]]]) -> None:
    """Each is the target's own greedy decoding."""
    for start in range(0, len(asked), 64):
        part = asked[start : start + 64]
        assert [answer for _, answer in part] == [answer for _, answer in answers([text for text, _ in part], most=MOST)]


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
