"""What the front says of itself, as samples, from the table that HAProxy writes on its own socket.

Source: docs.haproxy.org/2.8/management.html, section 9.1 (the columns).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping

from millrace.services.metrics.definitions import Sample, Samples

TOTALS = ("FRONTEND", "BACKEND", "waiting")  # rows that are no replica; the last is where requests wait
Row = Mapping[str, str]


def of_front(table: str, protocols: Iterable[str]) -> Samples:
    """By protocol; ``table``: what ``show stat`` prints. Counts begin anew with the front."""
    rows = list(csv.DictReader(table.removeprefix("# ").splitlines()))
    return [sample for protocol in protocols for sample in _of_protocol(protocol, rows)]


def _of_protocol(protocol: str, rows: Iterable[Row]) -> Samples:
    ours = [row for row in rows if row["pxname"] in (protocol, f"{protocol}_waiting")]
    frontend, backend, waiting = ([row for row in ours if row["svname"] == kind] for kind in TOTALS)
    replicas = [row for row in ours if row["svname"] not in TOTALS]
    malformed = _sum(frontend, "ereq")
    refused = {
        "connection": _sum(frontend, "dcon"),
        "malformed": malformed,
        "too-large": max(0, _sum(frontend, "hrsp_4xx") - malformed - _sum(backend, "hrsp_4xx")),
        "unanswered": max(0, _sum(backend, "hrsp_5xx") - _sum(replicas, "hrsp_5xx")),
    }
    return [
        Sample("millrace_front_connections", (protocol,), _sum(frontend, "scur")),
        Sample("millrace_front_waiting", (protocol,), _sum(waiting, "scur")),
        Sample("millrace_front_asked_again_total", (protocol,), _sum(backend, "wretr") + _sum(backend, "wredis")),
        *(Sample("millrace_front_refused_total", (protocol, reason), count) for reason, count in refused.items()),
    ]


def _sum(rows: Iterable[Row], column: str) -> int:
    return sum(int(row[column] or 0) for row in rows)
