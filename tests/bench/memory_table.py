"""The runs of bench-memory as a Markdown table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Lines = list[dict[str, Any]]
HEAD = (
    "| stream | learner | labels come after | form | log loss | without | AUC | without | AUC by day | without | accuracy "
    "| without | last label |"
)


def markdown(lines: Lines) -> str:
    """One row a run: with the memory, and of the same answers before their correction."""
    rows = [HEAD, "|" + " --- |" * HEAD.count(" | ") + " --- |"]
    for line in lines:
        learner = f"{line['base']}, {'frozen' if line['frozen'] else 'live'}"
        ours, own = line["with"], line["without"]
        figures = [shown(side.get(name)) for name in ("log_loss", "auc", "auc_by_day", "accuracy") for side in (ours, own)]
        cells = [line["stream"], learner, str(line["delay"]), line["form"], *figures, f"{line['last_label']:.3f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", *verdicts(lines)]) + "\n"


def shown(figure: float | None) -> str:
    """To three places; nothing where there is none, as of streams without a time."""
    return "" if figure is None else f"{figure:.3f}"


def verdicts(lines: Lines) -> list[str]:
    """How many arms fall short of what a memory is for."""
    said = []
    for form in ("exact", "sketch"):
        arms = [line for line in lines if line["form"] == form]
        changes = [line["with"]["log_loss"] - line["without"]["log_loss"] for line in arms]
        frozen = [line for line in arms if line["frozen"]]
        better = sum(line["with"]["auc"] > line["without"]["auc"] for line in frozen)
        lower, worst = sum(change < 0.0 for change in changes), max(changes, default=0.0)
        said.append(
            f"{form}: log loss lower in {lower} of {len(arms)} arms, at worst {worst:+.3f}; AUC higher on {better} of "
            f"{len(frozen)} frozen arms."
        )
    return said


def picture(lines: Lines, path: Path) -> None:
    """Log loss of each arm, with the memory and without."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 8))
    for form, marker in (("exact", "o"), ("sketch", "x")):
        arms = [line for line in lines if line["form"] == form]
        losses = [[line[side]["log_loss"] for line in arms] for side in ("without", "with")]
        axes.scatter(*losses, marker=marker, label=form)
    ends = [min(line["with"]["log_loss"] for line in lines), max(line["without"]["log_loss"] for line in lines)]
    axes.plot(ends, ends, linewidth=0.5, color="black")
    axes.set(xlabel="log loss without the memory", ylabel="with it", xscale="log", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
