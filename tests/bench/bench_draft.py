"""What a draft gains by learning from what it serves, on streams whose domain changes, beside every other way to draft.

The target answers each prompt once, in this project's engine with the chat draft, at temperature 0 in float32. Answers do not
hang on what drafts; that is looked at for every engine that runs here. Arms with a draft replay the answers (draft_arms.py),
and the replay of the draft that served is compared with the engine's own counts, step by step. `ngram` and no speculation are
engines of their own. Lines tell alpha (accepted of tested positions) and tau (tokens a step). None of them is a speed: on a
CPU, with models this small, a speed-up would say nothing.

python tests/bench/bench_draft.py [--quick] [--size 1000] [--seeds 1] [--out build/bench-draft]
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import draft_table
from draft_arms import ARMS, Run, counted, differing, figures, learned, start, values_of
from draft_engines import MOST, NGRAM, Answer, Answers, Prompt, answered_by
from draft_streams import PROBES, Stream, needed, prompts, streams
from results import machine, say

from millrace.learners.draft.config import DraftConfig
from millrace.learners.draft.learner import Draft
from millrace.streams.branch.host import use_threads

QUICK, WHOLE = 160, 1000  # completions of a segment
SUFFIX = "arctic_inference"  # the module that vLLM's `suffix` needs


@dataclass(frozen=True)
class Pool:
    """What every engine answered, by domain and in the order of the prompts."""

    ours: Mapping[str, Sequence[Answer]]
    none: Mapping[str, Sequence[Answer]]
    ngram: Mapping[str, Sequence[Answer]]
    serve_s: float  # processor time of a token, of our engine

    @property
    def probes(self) -> list[bytes]:
        """Completions of chat that no stream has."""
        return [answer.packed for answer in self.ours["chat"][-PROBES:]]


def pool_of(chosen: Sequence[Stream], folder: Path) -> Pool:
    """Every prompt of the streams, answered by three engines, one after the other."""
    asked = [Prompt(domain, text) for domain, count in needed(chosen).items() for text in prompts(domain, count)]
    answers = {method: answered_by(method, asked, folder) for method in ("draft", "none", "ngram")}
    tokens = sum(len(answer.tokens) - 1 for answer in answers["draft"].each)
    by_domain = [_by_domain(answers[method], asked) for method in ("draft", "none", "ngram")]
    return Pool(*by_domain, answers["draft"].processor_s / tokens)


def _by_domain(answers: Answers, asked: Sequence[Prompt]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for prompt, answer in zip(asked, answers.each, strict=True):
        found.setdefault(prompt.domain, []).append(answer)
    return found


def checks(pool: Pool) -> dict[str, Any]:
    """Whether all engines gave the same tokens, and the replay the engine's counts."""
    ours, none, ngram = ([answer for each in side.values() for answer in each] for side in (pool.ours, pool.none, pool.ngram))
    others = {
        name: sum(a.tokens != b.tokens for a, b in zip(ours, side, strict=True))
        for name, side in (("none", none), ("ngram", ngram))
    }
    replayed = differing([answer.packed for answer in ours], Draft(DraftConfig(start=start()), 0, 0))
    told = {"completions": len(ours), "tokens": sum(len(answer.tokens) for answer in ours), "most_tokens": MOST}
    differ = {"answers_differ_from_none": others["none"], "answers_differ_from_ngram": others["ngram"]}
    return {"bench": "draft", "case": "all tokens equal"} | told | differ | {"replay_differs_from_engine": replayed}


def runs(stream: Stream, pool: Pool, seed: int) -> Iterator[tuple[str, Run]]:
    """Every arm on a stream."""
    yield "no speculation", counted(values_of(stream, pool.none))
    yield "vLLM ngram", counted(values_of(stream, pool.ngram))
    values = [answer.packed for answer in values_of(stream, pool.ours)]
    for name, settings in ARMS.items():
        yield name, learned(settings, values, stream, pool.probes, seed)


def lines_of(chosen: Sequence[Stream], pool: Pool, seeds: int) -> Iterator[dict[str, Any]]:
    """One a stream, arm and seed."""
    for seed in range(seeds):
        for stream in chosen:
            for name, run in runs(stream, pool, seed):
                told = {"bench": "draft", "stream": stream.name, "arm": name, "seed": seed}
                yield told | figures(run, stream, pool.serve_s)


def main() -> None:
    """Print one JSON line an arm; all lines and their table go into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"segments of {QUICK} completions, not {WHOLE}; fewer streams")
    parser.add_argument("--size", type=int, help="completions of a segment")
    parser.add_argument("--seeds", type=int, default=1, help="of what is drawn from what a draft keeps")
    parser.add_argument("--out", type=Path, default=Path("build/bench-draft"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    use_threads(1)
    size = arguments.size or (QUICK if arguments.quick else WHOLE)
    place = arguments.out / str(size)
    place.mkdir(parents=True, exist_ok=True)
    chosen = streams(size, arguments.quick)
    say(machine("draft") | {"quick": arguments.quick, "segment": size, "ngram": NGRAM})
    if find_spec(SUFFIX) is None:
        say({"bench": "draft", "arm": "vLLM suffix", "not_run": f"{SUFFIX} is not in deploy/requirements/llm.txt"})
    pool = pool_of(chosen, place)
    say(checks(pool))
    lines = []
    for line in lines_of(chosen, pool, arguments.seeds):
        say(line)
        lines.append(line)
        (place / "draft.jsonl").write_text("".join(json.dumps(done) + "\n" for done in lines), encoding="utf-8")
        (place / "draft.md").write_text(draft_table.markdown(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
