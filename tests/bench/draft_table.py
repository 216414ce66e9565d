"""The runs of bench-draft as a Markdown table."""

from __future__ import annotations

from typing import Any

HEAD = (
    "| stream | arm | alpha | tau | tau by segment: first, plateau, tokens to 95 % of it | training's share "
    "| tau on unseen chat, by segment |"
)


def markdown(lines: list[dict[str, Any]]) -> str:
    """One row a stream and arm; seeds below each other."""
    rows = [HEAD, "|" + " --- |" * (HEAD.count(" | ") + 1)]
    return "\n".join([*rows, *(f"| {' | '.join(cells(line))} |" for line in lines)]) + "\n"


def cells(line: dict[str, Any]) -> list[str]:
    """What a row has."""
    parts = "; ".join(map(segment, line["segments"]))
    probes = ", ".join(f"{tau:.2f}" for tau in line.get("chat_probes", ()))
    share = f"{100 * line['training_share']:.0f} %" if line["learn_s"] else ""
    return [line["stream"], line["arm"], f"{line['alpha']:.3f}", f"{line['tau']:.2f}", parts, share, probes]


def segment(part: dict[str, Any]) -> str:
    """Of one segment; where domains are mixed nobody asks when its plateau was reached."""
    near = "" if part["tokens_to_95"] is None else f", {part['tokens_to_95']}"
    return f"{part['domain']} {part['first']:.2f}, {part['plateau']:.2f}{near}"
