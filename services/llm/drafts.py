"""`millrace drafts`: how each draft did where it served, by domain, from the completions that the log still has.

Records that cannot be read are counted in a row of their own: nobody knows which draft they are of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from millrace.learners.draft.completion import Completion, domain_among, unpack
from millrace.learners.errors import BadInputError
from millrace.services.pipeline.instance import Instance
from millrace.services.serving.status import overview, published_place

READ_ROWS = 1024  # completions read at once
UNREADABLE = "unreadable"  # in place of a version, which has a dot


@dataclass(slots=True)
class Did:
    """What a draft did on a domain."""

    requests: int = 0
    left_out: int = 0  # of these: prompt tokens were cached, another draft took over, or steps and tokens do not align
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    tested: int = 0  # positions: a step tests up to the first that is not accepted

    def add(self, completion: Completion) -> None:
        """One more."""
        accepted, tested = completion.served()
        self.requests += 1
        if not tested >= 0.0:  # NaN: its counts say nothing of this draft
            self.left_out += 1
            return
        self.steps += len(completion.drafted)
        self.drafted += int(completion.drafted.sum())
        self.accepted += int(accepted)
        self.tested += int(tested)

    def rates(self) -> dict[str, float | None]:
        """``alpha``, of what was tested; ``tau``, tokens a step; and what vLLM calls acceptance, of all that was drafted."""
        return {
            "alpha": self.accepted / self.tested if self.tested else None,
            "tau": 1.0 + self.accepted / self.steps if self.steps else None,
            "accepted_of_drafted": self.accepted / self.drafted if self.drafted else None,
        }


def drafts(instance: Instance) -> Iterator[dict[str, Any]]:
    """A row for each draft and domain, in the order in which drafts were made; one of what cannot be read.

    Raises: BadInputError for a pipeline of rows; StorageError, OffsetsGoneError.
    """
    if instance.loaded.pipeline.llm is None:
        raise BadInputError(f"{instance.loaded.pipeline.name} learns rows and has no drafts; `millrace versions` lists them.")
    holding, counted, unreadable = _holding(instance), dict[tuple[str, int, int, str], Did](), Did()
    domains: dict[str, None] = {}
    for completion in completions(instance):
        if completion is None:
            unreadable.requests += 1
            unreadable.left_out += 1
            continue
        header = completion.header
        domain = domain_among(domains, header.domain)
        domains.setdefault(domain)
        counted.setdefault((header.branch, header.epoch, header.seq, domain), Did()).add(completion)
    for (branch, epoch, seq, domain), did in sorted(counted.items()):
        version = f"{branch}.{seq}" if branch else ""
        yield _row(version, epoch, domain, did, holding[version])
    if unreadable.requests:
        yield _row(UNREADABLE, None, "", unreadable, 0)


def _row(version: str, epoch: int | None, domain: str, did: Did, replicas: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"version": version, "epoch": epoch, "domain": domain, "requests": did.requests}
    return facts | did.rates() | {"left_out": did.left_out, "replicas": replicas}


def completions(instance: Instance) -> Iterator[Completion | None]:
    """All that the log has now; None for what cannot be read, which is a dead letter of who learns."""
    source = instance.source([instance.loaded.pipeline.topic])
    source.seek({tp: first for tp, (first, _) in source.bounds().items()})
    while reads := source.next_batch(READ_ROWS):
        for value in (event.value for read in reads for event in read.events):
            try:
                yield unpack(value or b"")
            except BadInputError:
                yield None


def _holding(instance: Instance) -> Counter[str]:
    """How many replicas have which draft; none where nobody serves here."""
    place = published_place(instance)
    if place is None:
        return Counter()
    try:
        return Counter(str(replica["answers"]) for replica in overview(instance, place)["replicas"])
    except (OSError, msgspec.DecodeError):  # it is about to start, or to end
        return Counter()
