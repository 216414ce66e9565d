"""Whether the log still has what a state reads next."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from millrace.streams.branch.branch import load_part
from millrace.streams.errors import DamageError, OffsetsGoneError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.store import Store
from millrace.streams.source import Source
from millrace.streams.state.fold import Fold

log = logging.getLogger("millrace")


def check_retention(fold: Fold, source: Source) -> None:
    """The log must hold what the state is to read next.

    Raises: OffsetsGoneError with the choices.
    """
    for tp, (low, high) in source.bounds().items():
        at = fold.position.get(tp, low)
        if not low <= at <= high:
            raise OffsetsGoneError(
                f"{tp}: the state goes on at offset {at}, but the log holds {low} to {high - 1}. Restore the log, or begin a "
                "branch from what is there with --branch NEW."
            )


def warn_of_retention(source: Source, store: Store, marks: Sequence[Mark]) -> None:
    """Warn about a kept checkpoint whose following records the log no longer has (docs/design/journal.md, rule 17)."""
    bounds = source.bounds()
    for mark in marks:
        try:
            position = load_part(store, mark, "counts")["position"]
        except DamageError:
            continue  # restoring says so, where it matters
        if any(at < bounds[tp][0] for tp, at in position.items() if tp in bounds):
            log.warning("The log no longer has what follows the checkpoint of seq %d; keep records longer.", mark.state_seq)
