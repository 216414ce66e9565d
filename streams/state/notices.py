"""What a branch has learned otherwise than its records say, or not at all, for an operator to see.

`status` shows it, `run` and `up` warn of it, and every output of a step carries it. Nothing here is the record of truth.

Source: docs/how-to/what-status-warns-of.md.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from millrace.learners.evaluation.drafts import DraftScores
from millrace.learners.evaluation.prequential import ClassScores, ValueScores
from millrace.learners.protocol import Learner, Notices, Value, Warns
from millrace.streams.features.columns import Features

JUDGED_ROWS = 100  # scored, before errors are compared with a baseline's
ERRORS = 4.0  # times those of the baseline: squared error of numbers, wrong answers of classes
RESIDUAL = 1e-6  # relative, above which an exact learner is not exact any more

Totals = ClassScores | ValueScores | DraftScores

PHRASES = {
    "outside": "{value} learned values were below its low or above its high, and were clipped or taken as missing",
    "clipped": "{value} values lay far outside the others and were clipped as they were learned",
    "rounded": "{value} values of pixels were not whole numbers and were learned as the nearest; send 0 to 255",
    "clipped_weights": "{value} rows weigh over 10,000 and were learned with that weight",
    "far_out": "{value} learned values lay far outside everything learned before",
    "dropped": "{value}",
    "skipped_steps": "{value} steps were left out, as their gradient was not finite; scale the features or lower the rate",
    "unremembered": "{value} rows are not in the memory, as what was answered for them is not finite",
    "memory_full": "{value} rows have a class for which the memory has no room; lower memory.rows, or memory.bits",
    "flagged": "{value} completions had an adapter, a grammar, a penalty, an image, min_p or a bias, and were not learned",
    "other_target": "{value} completions are of another target than llm.target, and were not learned; begin with --branch NEW",
    "too_long": "{value} completions are longer than the draft takes, or than learner.longest_share says, and were not learned",
    "not_finite": "{value} completions say nothing of how likely their tokens were, and were not learned",
    "unscored": "{value} completions were replayed by weights that are not finite, and are in no share; lower the rate",
    "outside_classes": "{value} rows have a label that learner.classes does not name, and were not learned",
    "residual": "the solution misses its sums by {value:.1e}, relatively; raise learner.gamma",
    "errors_over_baseline": "errors are {value:.3g} times those of always answering the commonest label, or the mean",
}


def noticed(features: Features, learner: Learner, totals: Totals) -> dict[str, Value]:
    """What there is to see, by the names of PHRASES; of a field, in a dictionary by its name. Empty where all is well."""
    kind = type(learner)  # an ability of a class is remembered, and one of an object looked for anew
    own = dict(cast(Notices, learner).noticed()) if issubclass(kind, Notices) else {}
    own["residual"] = float(getattr(learner, "residual", 0.0))  # of learners that solve
    dropped = features.by_field(cast(Warns, learner).warnings()) if issubclass(kind, Warns) else {}
    of_columns = {name: features.by_field(own.pop(name, {})) for name in ("clipped", "rounded")}  # by learners themselves
    seen: dict[str, Any] = features.counts() | {"dropped": dropped} | own
    seen |= {"clipped": seen["clipped"] | of_columns["clipped"], "rounded": of_columns["rounded"]}
    if isinstance(totals, DraftScores):
        seen["unscored"] = totals.unscored
    if (errors := errors_over_baseline(totals)) > ERRORS:
        seen["errors_over_baseline"] = errors
    if seen["residual"] <= RESIDUAL:
        del seen["residual"]
    return {name: value for name, value in seen.items() if value}


def outside_classes(learner: Learner) -> int:
    """Rows that it was given and left out, since its ``classes`` does not name their label."""
    return int(getattr(learner, "left_out", 0))


def errors_over_baseline(totals: Totals) -> float:
    """Errors as a multiple of those of the commonest label, or of the mean; 0 before enough rows are scored."""
    if totals.rows < JUDGED_ROWS or isinstance(totals, DraftScores):  # a draft is compared with the one that served
        return 0.0
    if isinstance(totals, ClassScores):
        return (totals.rows - totals.correct) / max(totals.rows - totals.correct_majority, 1)
    baseline = np.maximum(totals.squared_error_mean, np.finfo(np.float64).tiny)
    return float(np.max(totals.squared_error / baseline, initial=0.0))


def sentences(seen: dict[str, Value]) -> dict[str, str]:
    """The same in words, by the names that ``flat`` gives."""
    words = {}
    for name, value in seen.items():
        for field, each in value.items() if isinstance(value, dict) else [("", value)]:
            words[f"{name}_{field}" if field else name] = (f"field {field}: " if field else "") + PHRASES[name].format(
                value=each
            )
    return words


def flat(seen: dict[str, Value]) -> dict[str, Value]:
    """One line each for a table: what it is, with the field."""
    lines: dict[str, Value] = {}
    for name, value in seen.items():
        lines |= {f"{name}_{field}": each for field, each in value.items()} if isinstance(value, dict) else {name: value}
    return lines
