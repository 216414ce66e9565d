"""`millrace mirror`: keeps the mirror in MLflow up to date, in a process of its own, until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from importlib.util import find_spec
from typing import Any

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import ConfigError, MillraceError
from millrace.services.config.config import set_environment
from millrace.services.errors import BusyError
from millrace.services.pipeline.instance import Instance
from millrace.services.registry.mirror import Mirror

log = logging.getLogger("millrace")

POLL_S = 5.0  # between two polls of the ledger
LONGEST_S = 60.0  # between two tries while MLflow is down
LOCK = "mlflow.mirror"  # no branch has a dot in its name
RETRY_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # we try again ourselves


def mirror(instance: Instance, once: bool, parent: int = 0) -> dict[str, Any]:
    """Mirror until SIGINT or SIGTERM, or ``once``; what was mirrored. With ``parent``, for as long as that process lives.

    Raises: ConfigError where no server is named, BusyError where another process mirrors it; with ``once`` MirrorError.
    """
    settings = instance.loaded.pipeline.mlflow
    if not settings.uri:
        raise ConfigError("This pipeline mirrors nothing: give it [mlflow] uri, or --set mlflow.uri=http://127.0.0.1:5000.")
    instance.refuse_completions("Mirroring in MLflow")
    if find_spec("mlflow") is None:
        raise MillraceError(f"Mirroring needs MLflow. {how_to_get('mlflow')}")
    set_environment(RETRY_SETTINGS)
    from millrace.services.registry.mlflow import MlflowRegistry

    model = settings.model or instance.loaded.pipeline.name
    try:
        with instance.hold(LOCK, take_over=False):
            mirror = Mirror(instance, MlflowRegistry(settings.uri, model))
            if not once:
                _keep_on(mirror, parent)
            mirrored = mirror.once() if once else mirror.kept
    except BusyError as error:
        raise BusyError(f"Another process mirrors this pipeline; see {instance.folder / LOCK}.lock.") from error
    return {"uri": settings.uri, "model": model, "versions": mirrored.versions}


def _keep_on(mirror: Mirror, parent: int) -> None:
    """Look every few seconds; what goes wrong is said once and tried again, later and later."""
    stop, wait_s, last_error = threading.Event(), POLL_S, ""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    os.nice(10)
    while not stop.is_set() and parent in (0, os.getppid()):
        try:
            mirror.once()
            wait_s, last_error = POLL_S, ""
        except MillraceError as error:
            if str(error) != last_error:
                last_error = str(error)
                log.warning("%s It is tried again.", last_error)
            mirror.failed(error)
            wait_s = min(2 * wait_s, LONGEST_S)
        stop.wait(wait_s)
