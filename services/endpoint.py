"""What both protocols answer about: the model, what it answers from now, and who may ask.

Requests are not gathered into batches: a ridge takes 7 us of the 500 us that a call costs its replica, so nothing is gained
by letting one wait for others. A caller who has many rows sends them in one request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from millrace.learners.errors import NotReadyError
from millrace.services.access import Access
from millrace.services.bundle import Bundle
from millrace.services.pool import Pool
from millrace.services.statistics import Statistics
from millrace.streams.schema import Schema

INLINE_BYTES = 1 << 16  # of a request that is answered on the event loop: a thread would cost more than the answer
MAX_BYTES = 16 << 20  # of a request


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One replica's."""

    name: str  # of the model: the pipeline's
    schema: Schema
    held: Callable[[], Bundle | None]  # what answers now
    access: Access = field(default_factory=Access)
    max_bytes: int = MAX_BYTES
    pool: Pool = field(default_factory=Pool)
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def newest(self) -> str | None:
        """The version that answers now, or None."""
        bundle = self.held()
        return None if bundle is None else bundle.identity.name


def ready(bundle: Bundle | None) -> Bundle:
    """The same, where there is one that can answer. Raises: NotReadyError."""
    if bundle is None or not bundle.outputs:
        raise NotReadyError("There is nothing to answer from yet: no version is served and no label was learned.")
    return bundle
