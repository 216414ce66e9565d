"""Two pictures of a story: windowed scores beside their baselines, in the terminal and as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array
from millrace.services.demo.evidence import MEASURES, Evidence, windows
from millrace.services.demo.report import StoryResults

HEIGHT = 20  # terminal lines
MARKERS = ("*", ".", "-")  # ours, and the two baselines
COLOURS = ("#1f5fbf", "#8c8c8c", "#c4a46b")
HELD_OUT = "#d9541e"
KILL = "#c01c28"
ALARM = "#c77d00"


def terminal(results: StoryResults, width: int) -> str:
    """A plot without colours, ``width`` characters wide.

    Raises: BadInputError where plotext is missing.
    """
    figure, evidence = colourless(width), results.evidence
    curves = windows(evidence.totals, results.window)
    for joined in evidence.joined[1:]:
        figure.line(joined.row, "vertical", style="dotted")
    for resumed in evidence.resumed:
        figure.line(resumed.row, "vertical", style="double")
    for at in (3, 2, 1):  # ours last, over the others
        figure.draw(figure.signal(curves[:, 0].tolist(), curves[:, at + 1].tolist(), marker=MARKERS[at - 1]).lines())
    tested = _tested(evidence)
    if tested:
        figure.draw(figure.signal([row for row, _ in tested], [score for _, score in tested], marker="o"))
    ruled(figure, (0.0, float(evidence.rows)), (0.0, _top(evidence, curves)))
    figure.label("rows", "x")
    figure.title(_title(results))
    return str(figure.build().string(colorless=True)) + "\n" + _legend(evidence, bool(tested))


def colourless(width: int) -> Any:
    """An empty terminal plot. Raises: BadInputError where plotext is missing."""
    try:
        import plotext
    except ImportError as error:
        raise no_extra("plotext") from error
    figure = plotext.figure
    figure.clear()
    plotext.terminal.limit(False, False)
    figure.plot_size(width, HEIGHT)
    figure.theme("colorless")
    return figure


def ruled(figure: Any, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Set a terminal plot's range, with five ticks each way."""
    for axis, (low, top) in (("x", x), ("y", y)):
        ticks = [low + (top - low) * share for share in (0, 0.25, 0.5, 0.75, 1)]
        figure.ruler(axis).lim(low, top)
        figure.ruler(axis).ticks(ticks, [f"{tick:,.2f}" if top < 10 else f"{tick:,.0f}" for tick in ticks])


def _legend(evidence: Evidence, tested: bool) -> str:
    named = [f"{mark} {name}" for mark, (_, name) in zip(MARKERS, MEASURES[evidence.task], strict=True)]
    held_out_legend = ["o held out, by version"] if tested else []
    joins = ["┊ a class joins"] if len(evidence.joined) > 1 else []
    return "    " + "   ".join([*named, *held_out_legend, "║ kill -9", *joins])


def _tested(evidence: Evidence) -> list[tuple[int, float]]:
    """Rows and held-out scores of the versions."""
    return [(version.row, version.score) for version in evidence.versions if version.score is not None]


def _title(results: StoryResults) -> str:
    measure = "accuracy" if results.evidence.task == "classify" else "mean absolute error"
    return f"{measure} over the last {results.window:,} rows or so, each answered before it was learned"


def _top(evidence: Evidence, curves: Array) -> float:
    """The upper end of the y axis; of errors so that a bad first window does not flatten the rest."""
    if evidence.task == "classify":
        return 1.0
    later = curves[len(curves) // 10 :, 2:]
    return float(later.max()) * 1.05 or 1.0


def png(results: StoryResults, path: Path) -> None:
    """The same as a picture at ``path``.

    Raises: BadInputError where matplotlib is missing.
    """
    figure, axes = figure_of()
    evidence = results.evidence
    _draw(axes, evidence, windows(evidence.totals, results.window))
    _mark(axes, evidence)
    axes.set_xlabel("rows of the stream")
    axes.set_ylabel("accuracy" if evidence.task == "classify" else "mean absolute error")
    axes.text(0.0, 1.13, results.title, transform=axes.transAxes, fontsize=14, fontweight="bold")
    axes.text(0.0, 1.08, _title(results), transform=axes.transAxes, fontsize=10, color="#444444")
    axes.grid(axis="y", color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=7, frameon=False)
    figure.savefig(path)


def figure_of() -> tuple[Any, Any]:
    """An empty picture and its axes.

    Raises: BadInputError where matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise no_extra("matplotlib") from error
    figure = Figure(figsize=(11, 5.8), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _draw(axes: Any, evidence: Evidence, curves: Array) -> None:
    """Ours over the held-out scores over the baselines."""
    for at, (_, name) in enumerate(MEASURES[evidence.task], start=1):
        line = axes.plot(curves[:, 0], curves[:, at + 1], "--" if at == 3 else "-", label=name, color=COLOURS[at - 1])[0]
        line.set(linewidth=2.4 if at == 1 else 1.6, zorder=6 - at)
    tested = _tested(evidence)
    if tested:
        rows, scores = zip(*tested, strict=True)
        line = axes.plot(rows, scores, "o-", label="held out, by version", color=HELD_OUT, clip_on=False)[0]
        line.set(markersize=5, linewidth=1.2, zorder=7)
    axes.set(xlim=(0, evidence.rows), ylim=(0, _top(evidence, curves) * 1.02))


def _mark(axes: Any, evidence: Evidence) -> None:
    """Upright lines where workers were killed, alarms raised and where classes joined, the classes named above the frame."""
    for at, raised in enumerate(alarm_raised for alarm_raised in evidence.raised if alarm_raised.alarm.direction == "worse"):
        axes.axvline(raised.alarm.rows, color=ALARM, linestyle="--", label=None if at else "alarm: worse", zorder=2)
    for at, resumed in enumerate(evidence.resumed):
        axes.axvline(resumed.row, color=KILL, linewidth=1.8, label=None if at else "kill -9, resumed", zorder=2)
    clear_from = 0.0  # the next name needs so much room
    for at, joined in enumerate(evidence.joined):
        line = axes.axvline(joined.row, color="#86aedb", linewidth=1.1, linestyle=":", zorder=1)
        line.set_label(None if at else "+ a class joins")
        if joined.row >= clear_from:
            named = ", ".join(joined.labels) if len(joined.labels) <= 3 else f"{len(joined.labels)} classes"
            place = {"xy": (joined.row, 1.0), "xycoords": ("data", "axes fraction")}
            axes.annotate(f"+{named}", **place, xytext=(-1, 4), textcoords="offset points", fontsize=8, color="#3f6ea3")
            clear_from = joined.row + evidence.rows * 0.0056 * (len(named) + 1)


def no_extra(package: str) -> BadInputError:
    """What says that a package is missing, and how to get it."""
    return BadInputError(f"The plots of a story need {package}. {how_to_get('demo')}")
