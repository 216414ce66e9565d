"""The feature stage of folds of revision 2, so that the states of a branch begun under it keep their hashes.

Its state does not say what the last look of the scale held to be sparse. A worker that went on from it, between two looks and
where a feature was just becoming busy, clipped otherwise than the one before it. So new branches begin with a later stage.

Source: CHANGELOG.md, fold_revision.
"""

from __future__ import annotations

from millrace.learners.protocol import Value
from millrace.streams.features.columns import Features


class FeaturesOfRevision2(Features):
    """The stage of one schema."""

    def state(self) -> dict[str, Value]:
        """The tables."""
        return {name: value for name, value in super().state().items() if name != "scale.known_changes"}
