"""The alerts: each is of metrics that there are, looks at its own release alone, and has its line in the README."""

from __future__ import annotations

import re
from typing import Any

import pytest
from charts import CHART, of_kind, program, rendered

from millrace.services.metrics.definitions import DEFINED

RENDERED = CHART / "ci" / "kafka-values.yaml"
SERIES = re.compile(r"(millrace_\w+)\{([^}]*)\}")
OWN = {"namespace": "models", "service": "rel-millrace-metrics"}  # what Prometheus adds, by the ServiceMonitor


@pytest.fixture
def alerts() -> list[dict[str, Any]]:
    """The rules of the one group."""
    [group] = of_kind(rendered(program("helm-4"), RENDERED), "PrometheusRule")["spec"]["groups"]
    return group["rules"]


def test_each_alert_is_of_metrics_and_labels_that_there_are(alerts: list[dict[str, Any]]) -> None:
    """By the table that /metrics is made from."""
    for alert in alerts:
        found = SERIES.findall(alert["expr"])
        assert len(found) == alert["expr"].count("{") > 0
        for name, selector in found:
            labels = dict(re.findall(r'(\w+)(?:=|=~|!~|!=)"([^"]*)"', selector))
            assert labels.items() >= OWN.items(), alert["alert"]
            assert set(labels) - set(OWN) <= set(DEFINED[name].labels), alert["alert"]


def test_counters_are_asked_for_their_rate_and_gauges_are_not(alerts: list[dict[str, Any]]) -> None:
    """Else a restart would look like a fall."""
    for alert in alerts:
        for function, name in re.findall(r"(\w+)\((millrace_\w+)", alert["expr"]):
            assert (function in ("rate", "increase")) == (DEFINED[name].kind == "counter"), alert["alert"]


def test_each_alert_has_its_line_in_the_readme(alerts: list[dict[str, Any]]) -> None:
    """With what it means and what to do; and no line is of an alert that is gone."""
    text = (CHART / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `Millrace")]
    assert [row[0].strip(" `") for row in rows] == [alert["alert"] for alert in alerts]
    assert all(len(row) == 3 and row[1].strip() and row[2].strip() for row in rows)
