"""Which running scores a branch keeps, by what its learner does."""

from __future__ import annotations

from millrace.learners.evaluation.drafts import PrequentialDrafts
from millrace.learners.evaluation.prequential import PrequentialClasses, PrequentialValues

Scores = PrequentialClasses | PrequentialValues | PrequentialDrafts


def scores_of(task: str, probabilities: bool) -> Scores:
    """New ones for ``classify``, ``regress`` or ``distil``; ``probabilities``: whether scores of classes are such."""
    if task == "distil":
        return PrequentialDrafts()
    return PrequentialClasses(probabilities) if task == "classify" else PrequentialValues()
