"""Whether `millrace up` goes on: its own loop, and the front that it keeps. Replicas are Serve's to watch."""

from __future__ import annotations

from pathlib import Path

from millrace.services.metrics.pulse import Pulse
from millrace.services.serving.front import told

FRONT_S = 5.0  # for the front to answer a command


def why_late(pulse: Pulse) -> str:
    """A sentence where the main loop hangs; nothing where it goes on."""
    late_s = pulse.late_s()
    return f"The main loop of `millrace up` is {late_s:.0f} s late." if late_s else ""


def why_stuck(pulse: Pulse, folder: Path | None) -> str:
    """The same, and where the front takes no command; ``folder``: of its sockets, None without a front."""
    if folder is None or front_answers(folder):
        return why_late(pulse)
    return why_late(pulse) or f"The front (HAProxy) has not answered a command for {FRONT_S:g} s, or it has ended."


def front_answers(folder: Path) -> bool:
    """Whether the front answers a command."""
    try:
        return bool(told(folder, "show info", FRONT_S))
    except OSError:
        return False
