"""Branches that were begun under an older revision go on under it: the same rows lead to the state that they led to then.

A fork names two revisions: of its learner's algorithm, and of what turns records into rows and rows into features, the fold's.

Source: docs/how-to/update.md
"""

from __future__ import annotations

from collections.abc import Callable

from millrace.learners.errors import LearnerError
from millrace.learners.protocol import EarlierRevisions, Learner, Scaling
from millrace.streams.features.columns import Features
from millrace.streams.features.revision_1 import FeaturesOfRevision1
from millrace.streams.features.revision_2 import FeaturesOfRevision2
from millrace.streams.journal.entries import Fork
from millrace.streams.schema import Schema
from millrace.streams.state.fold import REVISION

FEATURES: dict[int, Callable[[Schema, Scaling], Features]] = {  # by fold revision
    1: FeaturesOfRevision1,
    2: FeaturesOfRevision2,
    REVISION: Features,
}


def learner_maker(make_learner: Callable[[], Learner], fork: Fork) -> Callable[[], Learner]:
    """What makes learners of the revision that a branch was begun under.

    Raises: LearnerError where this release cannot learn as that one did.
    """

    def make() -> Learner:
        learner = make_learner()
        if fork.learner_revision == learner.revision:
            return learner
        if not isinstance(learner, EarlierRevisions) or fork.learner_revision not in learner.revisions:
            raise LearnerError(
                f"Branch {fork.branch} was learned by revision {fork.learner_revision} of {fork.learner}; this release has "
                f"revision {learner.revision}, which would learn the same rows differently. Learn them anew with "
                "`millrace run --branch NEW`, or use the release that wrote it; its versions still answer."
            )
        learner.as_of(fork.learner_revision)
        return learner

    make()
    return make


def features_of(schema: Schema, scaling: Scaling, fold_revision: int) -> Features:
    """A feature stage that has learned nothing, as folding of that revision has it.

    Raises: LearnerError where this release cannot fold so.
    """
    if fold_revision not in FEATURES:
        raise LearnerError(
            f"A branch of fold revision {fold_revision} was begun by a newer release; this one folds up to {REVISION}. "
            "Use the release that wrote it."
        )
    return FEATURES[fold_revision](schema, scaling)
