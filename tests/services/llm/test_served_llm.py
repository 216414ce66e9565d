"""A language model that answers while its draft is learned: real vLLM, real Ray Serve, HAProxy, and the `openai` client."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answered import K, answers, pair_folder
from llm_engine import SETTINGS
from pages import Reader, blocks, reading
from pipelines import ANSWER_S, MILLRACE, here, json_lines
from served_pipeline import Up, command_of, is_ready, own_port, starting, until
from unseen_prompts import POOL, looked_up, runs, shuffled, unseen

from millrace.learners.draft.completion import Completion, unpack
from millrace.learners.draft.folder import WEIGHTS
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.processes import descendants
from millrace.services.proof.certify import prove_version

pytestmark = [pytest.mark.llm, pytest.mark.slow, pytest.mark.xdist_group("llm")]

MOST = 40  # tokens of an answer
BATCH = 16  # completions that are learned at once, as the page has it
PAGE = "docs/how-to/distil-a-draft.md"
OF_PAGE = 2  # completions that the page itself asks for
CHAT, SQL = 62, 288  # further ones that are learned
LEARNED = OF_PAGE + CHAT + SQL  # whole batches
WAVE = 16  # completions that come at a time while a draft learns, all of one temperature
ASKED = 32  # prompts that are asked to see how a draft does; each is asked once
DRAWN = 1.0  # the temperature of every second wave of SQL, and of half of what is asked to see how a draft does on it
AT_ONCE = 16  # requests
METRICS = "metrics-port"  # a file that says it
LONG = 900  # tokens of an answer that nobody waits for
TOKENS = {"return_token_ids": True}
OFF = {"millrace-capture": "off"}


@dataclass
class Caller:
    """One that uses the `openai` client, some requests at a time; no prompt is asked twice."""

    client: Any  # OpenAI's
    taught: dict[str, int] = field(default_factory=lambda: {"chat": 0, "sql": 0})  # prompts that were asked to be learned
    left: dict[str, list[str]] = field(default_factory=lambda: {domain: unseen(domain) for domain in ("chat", "sql")})
    greedy: list[tuple[str, list[int]]] = field(default_factory=list)  # prompts at temperature 0, and the answers' tokens

    def ask(self, texts: list[str], headers: dict[str, str], temperature: float = 0.0) -> list[Any]:
        """The answers, in order."""
        create = self.client.with_options(default_headers=headers).completions.create
        asked = partial(create, model="answers", max_tokens=MOST, temperature=temperature, extra_body=TOKENS)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replies = list(pool.map(lambda text: asked(prompt=text), texts))
        if not temperature:
            self.greedy += zip(texts, map(tokens, replies), strict=True)
        return replies

    def teach(self, domain: str, count: int, *temperatures: float) -> None:
        """Wave after wave, so that what a draft learns is much the same in each run; temperatures take turns."""
        texts = shuffled(domain)[self.taught[domain] :][:count]
        self.taught[domain] += count
        for wave, start in enumerate(range(-(-count % WAVE), count, WAVE)):  # what the page asked is of the first wave
            part = texts[max(start, 0) : start + WAVE]
            self.ask(part, {"millrace-domain": domain}, temperatures[wave % len(temperatures)])

    def go_on(self, texts: list[str], over: threading.Event) -> int:
        """Prompts of SQL one by one, until it is over; how many."""
        for asked, text in enumerate(texts):
            if over.is_set():
                return asked
            self.ask([text], {"millrace-domain": "sql"})
        raise AssertionError(f"{len(texts)} prompts were not enough")

    def tests(self, domain: str, temperature: float = 0.0) -> list[Any]:
        """Answers to prompts that nothing of what is learned is like; none of them is learned."""
        texts, self.left[domain] = self.left[domain][:ASKED], self.left[domain][ASKED:]
        assert len(texts) == ASKED
        return self.ask(texts, OFF, temperature)


@contextmanager
def calling(up: Up) -> Iterator[Caller]:
    """One whose connections stay open, so that what it asks comes at once."""
    from openai import OpenAI

    with OpenAI(base_url=f"http://127.0.0.1:{up.port}/v1", api_key="none", timeout=ANSWER_S, max_retries=0) as client:
        yield Caller(client)


def tau(replies: Sequence[Any]) -> float:
    """Tokens a step."""
    steps = [step for reply in replies for step in accepted(reply)]
    return 1.0 + sum(steps) / len(steps)


def accepted(reply: Any) -> list[int]:
    """Of each step of an answer, those that are in it: a step may have come further than the answer's end."""
    left, steps = len(tokens(reply)) - 1, list[int]()
    for step in reply.model_extra["metrics"]["speculative_decoding"]["per_step_accepted"]:
        steps.append(min(step, left))
        left -= steps[-1] + 1
    return steps


def tokens(reply: Any) -> list[int]:
    """Of an answer."""
    return list(reply.choices[0].model_extra["token_ids"])


@contextmanager
def serving(folder: Path, file: str, _words: Sequence[str], found: list[Up]) -> Iterator[dict[str, str]]:
    """`millrace up` of the page, from the moment that it answers; answers have their counts, and a version comes of it."""
    (folder / METRICS).write_text(str(own_port()))
    more = ("--set", "llm.show_counts=true", "--set", f"worker.version_rows={LEARNED}")
    more += ("--metrics-port", (folder / METRICS).read_text())
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


def swap_seen(up: Up) -> bool:
    """Whether a swap touched a completion, once all have ended that were under way."""
    ended = len(captured(up)) + 2 * AT_ONCE
    until(lambda: len(captured(up)) > ended)
    return spanning(up) > 0


def spanning(up: Up) -> int:
    """Completions that a swap touched."""
    return sum("swap" in each.header.flags for each in captured(up))


def test_a_draft_is_learned_while_it_serves_and_swapped_under_load_and_back(up: Up) -> None:
    """Chat, then SQL, at temperature 0 and 1 by turns: tau on unseen SQL rises by half (drawn: by 0.3), on chat 0.8 stays.

    No prompt is asked twice, and no answer that counts has 20 tokens in a row that were learned. A rollback undoes it. At
    temperature 0 each answer is the target's own by transformers, of requests that a swap touches too. What is asked with
    capture off is not learned. Both versions are proved.
    """
    with calling(up) as caller:
        learned_and_swapped(up, caller)


def learned_and_swapped(up: Up, caller: Caller) -> None:
    """That test, by a caller."""
    before = asked_all(caller)
    caller.teach("chat", CHAT, 0.0)
    caller.teach("sql", SQL, 0.0, DRAWN)
    first = str(facts(up)["serves_default"])
    until(lambda: learned(up)[-1][1] >= LEARNED - BATCH)  # the last ones may be of the next version
    newest, taught = learned(up)[-1][0], captured(up)
    with load(caller) as asked:
        until(lambda: len(captured(up)) > LEARNED + AT_ONCE)
        decide(up, "serve", newest)
        while not swap_seen(up):  # nobody's answer was under way just then
            decide(up, "serve", first)
            decide(up, "serve", newest)
    until(lambda: len(captured(up)) == LEARNED + sum(each.result() for each in asked))
    seen = captured(up)
    assert {each.header.seq for each in seen} >= {seq_of(first), seq_of(newest)}
    after = asked_all(caller)
    assert len(captured(up)) == len(seen)
    assert {each.header.temperature for each in taught if each.header.domain == "sql"} == {0.0, DRAWN}
    greedy = learned_runs(taught, 0.0)
    assert not any(greedy & runs(tokens(reply)) for name in ("sql", "chat") for reply in after[name])
    known = greedy | learned_runs(taught, DRAWN)  # what was drawn may have come upon the same: such an answer does not count
    after = {name: [reply for reply in replies if not known & runs(tokens(reply))] for name, replies in after.items()}
    counted = {name: len(replies) for name, replies in after.items()}
    assert min(counted.values()) > ASKED // 2
    decide(up, "rollback", first)
    back = caller.tests("sql")
    reports = [prove_version(instance(up), version) for version in (first, newest)]
    assert all(report.proved and not report.findings for report in reports)
    taus = {
        when: {name: tau(each) for name, each in replies.items()} for when, replies in (("before", before), ("after", after))
    }
    ngram = looked_up([(reply.choices[0].model_extra["prompt_token_ids"], tokens(reply)) for reply in after["sql"]], K)
    print(json.dumps(taus | {"back": tau(back), "ngram": ngram, "spanning": spanning(up), "counted": counted}))
    check_taus(taus)
    assert tau(back) < 1.2
    check_answers(caller.greedy)


def learned_runs(taught: Sequence[Completion], temperature: float) -> frozenset[tuple[int, ...]]:
    """Every RUN tokens in a row of the completions of a temperature, prompts among them."""
    told = ([*each.prompt.tolist(), *each.output.tolist()] for each in taught if each.header.temperature == temperature)
    return frozenset().union(*map(runs, told))


def asked_all(caller: Caller) -> dict[str, list[Any]]:
    """Answers to unseen prompts of both domains, and to those of SQL at temperature 1."""
    return {"chat": caller.tests("chat"), "sql": caller.tests("sql"), "drawn": caller.tests("sql", DRAWN)}


def taus_of(replies: dict[str, list[Any]]) -> dict[str, float]:
    """By what was asked."""
    return {name: tau(each) for name, each in replies.items()}


def check_taus(taus: dict[str, dict[str, float]]) -> None:
    """How much they have changed, of what was before."""
    before, after = taus["before"], taus["after"]
    assert before["sql"] < 1.2 and before["chat"] > 1.5
    assert after["sql"] >= 1.5 and after["sql"] >= 1.5 * before["sql"]
    assert after["drawn"] >= 1.3 * before["drawn"]  # 1.59 was seen; 1.5 could be missed by chance
    assert after["chat"] >= 0.8 * before["chat"]


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


def test_a_caller_who_leaves_mid_stream_is_counted_and_the_engine_is_free_again(up: Up) -> None:
    """Two pieces of a long answer came through the front: its record ends by abort, and `drafts` leaves it out."""
    before, generated = len(captured(up)), of_engine(up, "generation_tokens_total")
    with calling(up) as caller:
        create = partial(caller.client.completions.create, model="answers", max_tokens=LONG, stream=True)
        told = {"extra_body": {"ignore_eos": True}, "extra_headers": {"millrace-domain": "left"}}
        stream = create(prompt=unseen("chat")[-1], temperature=0, **told)
        pieces = [next(stream) for _ in range(2)]
        stream.close()
    until(lambda: len(captured(up)) > before)
    [left] = captured(up)[before:]
    assert (left.header.domain, left.header.ended) == ("left", "abort") and len(pieces) <= len(left.output) < LONG
    assert np.isnan(left.served()).all()
    rows = json_lines(here("drafts", "llm.toml", "--output", "json", cwd=up.folder).stdout)
    assert [(row["requests"], row["left_out"]) for row in rows if row["domain"] == "left"] == [(1, 1)]
    until(lambda: of_engine(up, "generation_tokens_total") >= generated + len(left.output))
    until(lambda: of_engine(up, "num_requests_running") == 0.0)
    assert of_engine(up, "generation_tokens_total") < generated + LONG


def of_engine(up: Up, series: str) -> float:
    """One of vLLM's own series."""
    import httpx  # which comes with vLLM

    text = httpx.get(f"http://127.0.0.1:{(up.folder / METRICS).read_text()}/metrics", timeout=ANSWER_S).text
    return sum(map(float, re.findall(rf"^vllm:{series}{{.*}} (\S+)$", text, re.MULTILINE)))


def test_a_replica_killed_during_a_swap_comes_back_with_the_draft_that_was_decided(up: Up) -> None:
    """Its engine stands still, the draft lies there, and then comes kill -9: nothing of it stays, and answers are right."""
    [replica] = up.pids(":LanguageModel")
    engine = [pid for pid in descendants(replica) if "VLLM" in command_of(pid)]
    drafts, newest = folder_of(replica), learned(up)[-1][0]
    assert len(engine) == 2 and newest != facts(up)["serves_default"]
    for pid in engine:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert here("serve", "llm.toml", newest, "--reason", "test", "--yes", cwd=up.folder).exit_code == 0
        until(lambda: any(drafts.glob(f"{newest}-*/{WEIGHTS}")))
        os.kill(replica, signal.SIGKILL)
    finally:
        for pid in engine:
            os.kill(pid, signal.SIGCONT)
    until(lambda: f"{newest}; told to serve version {newest};" in str(facts(up).get("replica_1")) and is_ready(up.port))
    assert not any(map(command_of, engine)) and not drafts.exists() and up.pids(":LanguageModel") != [replica]
    texts = shuffled("sql")[POOL // 2 - ASKED : POOL // 2]
    with calling(up) as caller:
        caller.ask(texts, {"millrace-domain": "sql"})
    check_answers(caller.greedy)
    assert {each.header.seq for each in captured(up)[-len(texts) :]} == {seq_of(newest)}


def folder_of(replica: int) -> Path:
    """Where a replica's drafts lie while its engine has them."""
    [folder] = Path(tempfile.gettempdir()).glob(f"millrace-up-*/s/drafts/{replica}")
    return folder
