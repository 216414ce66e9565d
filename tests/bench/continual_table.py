"""The runs of bench-continual as a Markdown table, a picture, and one JSON line a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from results import compared

Runs = list[dict[str, Any]]
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}  # Student's t, two-sided, by freedom
STREAMS = {"mnist": "split MNIST", "cifar": "split CIFAR-10 (JPEG copy)"}
ROUNDING = 1e-9  # of means of shares
SETTINGS = (
    "Five tasks of two classes, in an order that the seed draws; one pass; nobody is told where a task ends. "
    "Networks: an mlp of 100 and 100 units on pixels (MNIST), a convnet of 10 and 20 channels and 80 units (CIFAR-10), "
    "there with crop and flip, or as their papers do with changes of size and colour (PCR, HPCR, OnPro); 10 rows and 10 "
    "replayed ones a step, one step each, SGD (OnPro and PEC: Adam; PEC: a row a step). Rates: the best of three on up "
    "to 5,000 rows of seed 100, which is in no table, with buffer 200, for "
    "every method and for mammoth's; OnPro on CIFAR-10 has its paper's. Memory is the packed state. rows/s are of "
    "processor time on one thread, evaluation left out; the mobilenet's are of the head alone, its features take "
    "about 1 ms a picture. Figures are means over seeds in percent, ± the deviation."
)
FIGURES = ("accuracy", "aaa", "wc_acc", "forgetting")
COLUMNS = ("method", "buffer", "final accuracy", "AAA", "WC-ACC", "forgetting", "memory KiB", "rows/s", "seeds", "settings")
UNSAID = ("pixels", "classes", "image", "network", "hidden", "channels", "buffer_rows", "replay_rows", "step_rows", "augment")


def grouped(all_runs: Runs, side: str) -> dict[tuple[str, str, int], Runs]:
    """Runs of a side by stream, method and buffer, seeds in order; the search's left out."""
    groups: dict[tuple[str, str, int], Runs] = {}
    for run in sorted(all_runs, key=lambda run: run["request"]["seed"]):
        asked = run["request"]
        if asked["side"] == side:
            stream = "cifar" if asked["stream"] == "features" else asked["stream"]
            groups.setdefault((stream, asked["label"], asked["buffer_rows"]), []).append(run)
    return groups


def of(runs: Runs, figure: str) -> float:
    """The mean over seeds."""
    return float(np.mean([run[figure] for run in runs]))


def markdown(done: Runs, wanted: int) -> str:
    """One table a stream, the most accurate first."""
    ours = grouped(done, "ours")
    parts = [f"{len(done)} of {wanted} runs have finished." if len(done) < wanted else f"All {wanted} runs have finished."]
    parts.append(SETTINGS)
    for stream, title in STREAMS.items():
        rows = {key: runs for key, runs in ours.items() if key[0] == stream}
        if not rows:
            continue
        asked = next(iter(rows.values()))[0]["request"]
        ordered = sorted(rows.items(), key=lambda item: -of(item[1], "accuracy"))
        lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *(_line(_cells(key, runs)) for key, runs in ordered)]
        head = f"**{title}**: {asked['rows']:,} rows once, evaluated every {asked['every']} steps on 500 held-out images."
        parts.append("\n".join([head, "", *lines]))
    peers = "\n".join(_peer_lines(done))
    return "\n\n".join([*parts, *([peers] if peers else [])]) + "\n"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(key: tuple[str, str, int], runs: Runs) -> list[str]:
    """Of one method."""
    spread = np.std([run["accuracy"] for run in runs], ddof=1) if len(runs) > 1 else math.nan
    shares = [f"{100 * of(runs, figure):.1f}" for figure in FIGURES]
    shares[0] += "" if math.isnan(spread) else f" ± {100 * spread:.1f}"
    settings = ", ".join(f"{name} {value:g}" for name, value in runs[0]["request"]["config"].items() if name not in UNSAID)
    size, speed = f"{of(runs, 'bytes') / 1024:,.0f}", f"{of(runs, 'rows_per_s'):,.0f}"
    return [key[1], str(key[2]) if key[2] else "none", *shares, size, speed, str(len(runs)), settings or "defaults"]


def inside(ours: Runs, theirs: Runs) -> tuple[bool, float]:
    """Whether our mean is above theirs, or inside the pooled 95 % interval of the difference; and its half width."""
    a, b = ([run["accuracy"] for run in runs] for runs in (ours, theirs))
    freedom = len(a) + len(b) - 2
    if len(a) < 2 or len(b) < 2:
        return float(np.mean(a)) >= float(np.mean(b)) - ROUNDING, 0.0
    pooled = (np.var(a, ddof=1) * (len(a) - 1) + np.var(b, ddof=1) * (len(b) - 1)) / freedom
    width = T95.get(freedom, 2.3) * math.sqrt(pooled * (1.0 / len(a) + 1.0 / len(b)))
    return bool(np.mean(a) >= np.mean(b) - width - ROUNDING), float(width)


def _pairs(all_runs: Runs) -> Iterator[tuple[tuple[str, str, int], Runs, Runs]]:
    """Ours and mammoth's, of the seeds that both have."""
    ours = grouped(all_runs, "ours")
    for key, runs in sorted(grouped(all_runs, "mammoth").items()):
        mine = {run["request"]["seed"]: run for run in ours.get(key, [])}
        both = [(mine[seed], run) for run in runs if (seed := run["request"]["seed"]) in mine]
        if both:
            yield key, [pair[0] for pair in both], [pair[1] for pair in both]


def _peer_lines(runs: Runs) -> Iterator[str]:
    """A table of its own."""
    rows = list(_pairs(runs))
    if rows:
        titles = ("stream", "method", "buffer", "ours", "mammoth", "95 % half width", "inside or above", "time a batch")
        yield _line(titles)
        yield _line(["---"] * len(titles))
    for (stream, label, buffer_rows), ours, theirs in rows:
        held, width = inside(ours, theirs)
        means = [f"{100 * of(side, 'accuracy'):.1f} (rate {side[0]['request']['config']['rate']:g})" for side in (ours, theirs)]
        ratio = float(np.median([a["rows_per_s"] / b["rows_per_s"] for a, b in zip(ours, theirs, strict=True)]))
        told = [f"{100 * width:.1f}" if width else "one seed", "yes" if held else "no", f"{ratio:.2f} times as fast"]
        yield _line([STREAMS[stream], label, str(buffer_rows), *means, *told])


def printed(runs: Runs) -> Iterator[dict[str, object]]:
    """Accuracy and time a batch beside mammoth's."""
    for (stream, label, buffer_rows), ours, theirs in _pairs(runs):
        case, goal = f"{STREAMS[stream]}, {label}, buffer {buffer_rows}", ("mammoth", 1.0)
        held, _ = inside(ours, theirs)
        mine, other = of(ours, "accuracy"), of(theirs, "accuracy")
        numbers = {"ours": round(mine, 4), "peer": round(other, 4), "peer_name": "mammoth", "ratio": round(mine / other, 3)}
        yield {"bench": "continual", "case": case, "unit": "final accuracy", **numbers, "goal": 1.0, "inside_or_above": held}
        times = [(10 / a["rows_per_s"], 10 / b["rows_per_s"]) for a, b in zip(ours, theirs, strict=True)]
        yield compared("continual", case, "s a batch", times, goal)


def drawn(all_runs: Runs, place: Path) -> None:
    """Final accuracy over bytes of memory, a point a method."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(14, 6))
    for axis, (stream, title) in zip(axes, STREAMS.items(), strict=True):
        for (of_stream, label, buffer_rows), runs in grouped(all_runs, "ours").items():
            if of_stream == stream:
                at = (of(runs, "bytes") / 1024, 100 * of(runs, "accuracy"))
                axis.plot(*at, "o")
                axis.annotate(f"{label} {buffer_rows or ''}", at, fontsize=7)
        axis.margins(x=0.2)
        axis.set(title=title, xlabel="memory, KiB", ylabel="final accuracy, %", xscale="log")
    figure.tight_layout()
    figure.savefig(place, dpi=120)
    pyplot.close(figure)
