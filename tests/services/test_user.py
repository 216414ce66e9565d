"""Decisions name who made them, also where the machine knows no name for that user."""

from __future__ import annotations

from pathlib import Path

from pipelines import PIPELINE, json_lines, pipeline_in
from strangers import STRANGER, stranger_millrace


def test_a_user_without_a_name_rolls_back_and_verifies_and_the_ledger_names_the_number(tmp_path: Path) -> None:
    """uid 10001 with no entry in the password database and no USER, as in a container."""
    folder = tmp_path / "pod"
    folder.mkdir()
    pipeline_in(folder, rows=200, text=PIPELINE + "version_rows = 100\n")
    for words in (
        ["send", "digits.toml", "rows.jsonl"],
        ["run", "digits.toml"],
        ["rollback", "digits.toml", "--reason", "garbage", "--yes"],
        ["verify", "digits.toml"],
    ):
        done = stranger_millrace(folder, *words)
        assert done.returncode == 0, done.stderr
    ledger = json_lines(stranger_millrace(folder, "log", "digits.toml", "--ledger", "--output", "json").stdout)
    assert {(line["kind"], line["who"]) for line in ledger} >= {
        ("serve", f"uid-{STRANGER}"),
        ("certificate", f"uid-{STRANGER}"),
    }
