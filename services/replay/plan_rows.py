"""A replay's plan as an operator sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from millrace.services.decisions.exclusions import exclusion_words
from millrace.services.replay.plan import Extent, ReplayPlan
from millrace.streams.journal.ledger import describe_target as target_words


def plan_rows(name: str, plan: ReplayPlan, extent: Extent, differs: Sequence[str]) -> list[dict[str, Any]]:
    """A plan as lines to show."""
    facts = {
        "plan": name,
        "branch": plan.branch,
        "from": plan.version or f"nothing, at {', '.join(f'{tp} {at}' for tp, at in plan.kept.items())}",
        "backfill": "none" if plan.backfill is None else f"{plan.backfill.rows} rows of {plan.backfill.path}",
        "excludes": "; ".join(map(exclusion_words, plan.exclude)) or "nothing",
        "records": extent.records,
        "bytes": extent.bytes,
        "excluded": extent.excluded,
        "rows_per_s": round(extent.rows_per_s),
        "seconds": round(extent.seconds, 3),
        "taken_by_retention": 0,
        "configuration": "; ".join(differs) or "as the version's",
        "endpoint": target_words(plan.serves),
    }
    if extent.read_before:
        topics = ", ".join(f"{count} of {topic}" for topic, count in sorted(extent.read_before.items()))
        facts["not_left_out"] = (
            f"{sum(extent.read_before.values())} of these records are in {plan.version} already ({topics}); "
            "plan from an earlier version"
        )
    return [{"what": name, "value": value} for name, value in facts.items()]
