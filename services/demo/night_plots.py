"""Two pictures of the night call: accuracy as served beside the repaired model's, in the terminal and as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from millrace.services.demo.night import Night
from millrace.services.demo.plots import COLOURS, KILL, colourless, figure_of, ruled
from millrace.services.demo.repaired import WINDOW_ROWS

BEFORE_ROWS = 100  # shown before the first wrong label
REPAIRED = "#2a8f4f"
TITLE = f"accuracy over the last {WINDOW_ROWS} rows or so, against the labels as they came"


def _marks(night: Night) -> list[tuple[str, int]]:
    """What happened, and at which row."""
    return [
        ("alarm", night.alarm.rows),
        ("rollback", night.rollback.row),
        ("replayed", night.replay.row),
        ("take-over", night.take_over.row),
    ]


def _range(night: Night) -> tuple[float, float]:
    return max(0.0, night.poison[0] - BEFORE_ROWS), float(night.repaired.rows[-1])


def terminal(night: Night, width: int) -> str:
    """A plot without colours, ``width`` characters wide.

    Raises: BadInputError where plotext is missing.
    """
    figure = colourless(width)
    for row in night.poison:
        figure.line(row, "vertical", style="dotted")
    for _, row in _marks(night):
        figure.line(row, "vertical", style="double")
    low, high = _range(night)
    for curve, marker in ((night.repaired, "+"), (night.served, "*")):
        in_range = curve.rows >= low
        figure.draw(figure.signal(curve.rows[in_range].tolist(), curve.accuracy[in_range].tolist(), marker=marker).lines())
    ruled(figure, (low, high), (0.0, 1.0))
    figure.label("rows with a label", "x")
    figure.title(TITLE)
    legend = f"    * main, as served   + {night.replayed['branch']}, repaired   ┊ wrong labels begin and end   ║ " + ", ".join(
        name for name, _ in _marks(night)
    )
    return str(figure.build().string(colorless=True)) + "\n" + legend


def png(night: Night, path: Path) -> None:
    """The same as a picture at ``path``.

    Raises: BadInputError where matplotlib is missing.
    """
    figure, axes = figure_of()
    low, high = _range(night)
    axes.axvspan(*night.poison, color=KILL, alpha=0.12, linewidth=0, label="wrong labels")
    for curve, name, colour in (
        (night.served, "main, as served", COLOURS[0]),
        (night.repaired, f"{night.replayed['branch']}, repaired", REPAIRED),
    ):
        in_range = curve.rows >= low
        axes.plot(curve.rows[in_range], curve.accuracy[in_range], label=name, color=colour, linewidth=2.0)
    for at, (name, row) in enumerate(_marks(night)):
        _mark(axes, name, row, 4 + at % 2 * 10)
    axes.set(xlim=(low, high), ylim=(0, 1.02), xlabel="rows with a label", ylabel="accuracy")
    title = "a producer labels wrongly; its labels are left out, and the model is as if it had never heard them"
    axes.text(0.0, 1.13, title, transform=axes.transAxes, fontsize=13, fontweight="bold")
    axes.text(0.0, 1.08, TITLE, transform=axes.transAxes, fontsize=10, color="#444444")
    axes.grid(axis="y", color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=6, frameon=False)
    figure.savefig(path)


def _mark(axes: Any, name: str, row: int, above: int) -> None:
    axes.axvline(row, color="#555555", linewidth=1.2, linestyle="--", zorder=1)
    place = {"xy": (row, 1.0), "xycoords": ("data", "axes fraction")}
    axes.annotate(name, **place, xytext=(-2, above), textcoords="offset points", fontsize=8, color="#333333")
