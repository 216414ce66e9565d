"""`millrace versions`: what there is, what it weighs, who vouches for it, who serves it."""

from __future__ import annotations

from pathlib import Path

from rooms import PIPELINE, here, json_lines, pipeline_in


def listed(folder: Path) -> list[dict]:
    """The lines of the command."""
    done = here("versions", "digits.toml", "--output", "json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return json_lines(done.stdout)


def test_versions_say_what_they_learned_whether_they_were_verified_and_who_serves_them(tmp_path: Path) -> None:
    """Before and after `verify` and `serve`; a damaged part is named instead of a size."""
    pipeline_in(tmp_path, rows=300, text=PIPELINE + "version_rows = 100\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    before = listed(tmp_path)
    assert [line["learned"] for line in before] == sorted(line["learned"] for line in before)
    assert before[-1]["learned"] == 300
    assert all(line["bytes"] > 0 and line["parts"] == "whole" for line in before)
    assert {line["verified"] for line in before} == {"no"} and {line["served_by"] for line in before} == {""}
    oldest = before[0]["version"]
    assert here("verify", "digits.toml", cwd=tmp_path).exit_code == 0
    assert here("serve", "digits.toml", oldest, "--reason", "test", "--yes", cwd=tmp_path).exit_code == 0
    after = listed(tmp_path)
    assert {line["verified"] for line in after} == {"equal, from fork"}
    assert [line["version"] for line in after if line["served_by"] == "default"] == [oldest]
    for part in (tmp_path / ".millrace/digits/store").rglob("*"):
        if part.is_file():
            part.write_bytes(b"damaged" + part.read_bytes())
    assert all(line["bytes"] is None and "is not what was stored" in line["parts"] for line in listed(tmp_path))
