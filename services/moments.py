"""Times as people and programs both read them: ISO 8601, in this machine's zone and with its offset."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(ms: int) -> str:
    """Milliseconds since 1970 as ISO 8601; where no calendar has such a time, the number itself.

    >>> moment(0)[:2] in ("19", "20"), moment(1 << 62)
    (True, '4611686018427387904 ms since 1970')
    """
    try:
        whole = datetime.fromtimestamp(ms // 1000, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms since 1970"
    return whole.replace(microsecond=ms % 1000 * 1000).isoformat(timespec="milliseconds" if ms % 1000 else "seconds")
