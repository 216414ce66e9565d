"""What is measured of a served pipeline, for Prometheus: which samples come from whom."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from millrace.learners.distribution import release
from millrace.services.metrics.answering import of_replicas, of_trainers
from millrace.services.metrics.definitions import FRONT, LOG, REPLICAS, TRAINER, Answer, Sample, Samples
from millrace.services.metrics.front import of_front
from millrace.services.metrics.learning import Learning
from millrace.services.metrics.pulse import Pulse
from millrace.services.serving.alive import why_late, why_stuck
from millrace.services.serving.front import PROTOCOLS, told
from millrace.services.serving.ports import refused
from millrace.services.serving.seats import is_draining

if TYPE_CHECKING:
    from millrace.services.metrics.page import Page
    from millrace.services.serving.replica import Serving


@contextmanager
def metrics_port(host: str, port: int) -> Iterator[Page | None]:
    """The port, taken for as long as the block runs; none where it is 0. Raises: BusyError where it cannot be had."""
    if not port:
        yield None
        return
    from millrace.services.metrics.page import Page

    try:
        page = Page(host, port)
    except OSError as error:
        raise refused(error, host, port, ("--metrics-host", "--metrics-port")) from error
    try:
        yield page
    finally:
        page.close()


@contextmanager
def measured(page: Page | None, serving: Serving) -> Iterator[Pulse]:
    """Scrapes are answered for as long as the block runs; until the page is closed it still tells whether `up` goes on.

    Yields: what the main loop is to beat.
    """
    pulse = Pulse()
    if page is None:
        yield pulse
        return
    asked: dict[str, Callable[[], Answer]] = {
        LOG: Learning(serving.instance, serving.branch),
        TRAINER: lambda: asyncio.run(_of_trainers(serving)),
        REPLICAS: lambda: asyncio.run(_of_replicas(serving)),
    }
    if serving.front:
        asked[FRONT] = lambda: Answer(of_front(told(serving.folder), PROTOCOLS), is_whole=True)
    page.begin(lambda: _own(serving), asked, lambda: why_stuck(pulse, serving.folder if serving.front else None))
    try:
        yield pulse
    finally:
        page.rest(lambda: why_late(pulse))


def _own(serving: Serving) -> Samples:
    return [
        Sample("millrace_build_info", (release(), platform.python_version()), 1),
        Sample("millrace_draining", (), is_draining(serving.folder)),
        Sample("millrace_replicas_wanted", (), serving.replicas),
    ]


async def _of_trainers(serving: Serving) -> Answer:
    from millrace.services.serving.actors import trainer_state

    branches = list(dict.fromkeys([*serving.instance.shards(serving.branch), serving.branch]))
    states = await asyncio.gather(*(trainer_state(serving.instance, branch) for branch in branches))
    return Answer(of_trainers(dict(zip(branches, states, strict=True))), is_whole=None not in states)


async def _of_replicas(serving: Serving) -> Answer:
    """Of those that have said something lately; without any the answer is not whole."""
    from millrace.services.serving.actors import Subscriber, current_name

    presences = await Subscriber(current_name(serving.instance)).replicas()
    series = tuple((presence.replica, presence.series) for presence in presences if presence.series)
    return Answer(of_replicas(presences), is_whole=bool(presences), series=series)
