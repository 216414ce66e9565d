"""`millrace versions`: what there is, what it weighs, who vouches for it, who serves it."""

from __future__ import annotations

from pathlib import Path

from pipelines import PIPELINE, here, json_lines, pipeline_in


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
    assert {line["verified"] for line in before} == {"pending"} and {line["served_by"] for line in before} == {""}
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


def named(folder: Path) -> dict[str, str]:
    """Version -> its aliases, of versions that have any."""
    return {line["version"]: line["aliases"] for line in listed(folder) if line["aliases"]}


def test_an_alias_is_planned_moved_taken_away_and_undone(tmp_path: Path) -> None:
    """By id, by another alias and as the newest; what it names can be served by its name."""
    pipeline_in(tmp_path, rows=300, text=PIPELINE + "step_rows = 50\nversion_rows = 100\n")
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    first, *_, newest = [line["version"] for line in listed(tmp_path)]

    def promote(*words: str) -> str:
        done = here("promote", "digits.toml", *words, "--reason", "r", cwd=tmp_path)
        assert done.exit_code == 0, done.stderr
        return done.stderr.splitlines()[-1]

    assert promote(first) == "Nothing was changed. Give --yes to do it." and named(tmp_path) == {}
    assert promote(first, "--yes") == "undo: millrace promote digits.toml none --alias champion --reason undo --yes"
    assert promote("champion", "--alias", "last-good", "--yes") and named(tmp_path) == {first: "champion, last-good"}
    undo = promote("newest", "--yes").removeprefix("undo: millrace ").split()
    assert named(tmp_path) == {first: "last-good", newest: "champion"}
    assert here(*undo, cwd=tmp_path).exit_code == 0 and named(tmp_path) == {first: "champion, last-good"}
    assert promote("none", "--alias", "last-good", "--yes") and named(tmp_path) == {first: "champion"}
    assert here("serve", "digits.toml", "champion", "--reason", "r", "--yes", cwd=tmp_path).exit_code == 0
    assert {line["version"]: line["served_by"] for line in listed(tmp_path)}[first] == "default"
    lost = here("promote", "digits.toml", "main.999", "--reason", "r", "--yes", cwd=tmp_path)
    assert lost.exit_code == 1 and "no version main.999" in lost.stderr


def test_old_versions_are_let_go_and_said_so_and_never_served_again(tmp_path: Path) -> None:
    """All but the newest, what an alias names and what is served; verify misses none of them."""
    pipeline_in(tmp_path, rows=600, text=PIPELINE + "step_rows = 50\nversion_rows = 100\n[versions]\nkeep = 2\n")
    text = (tmp_path / "digits.toml").read_text()
    (tmp_path / "digits.toml").write_text(text.replace("keep = 2", "keep = 0"))
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    first, second, third, *_ = [line["version"] for line in listed(tmp_path)]
    for words in (["promote", "digits.toml", first], ["serve", "digits.toml", third]):
        assert here(*words, "--reason", "r", "--yes", cwd=tmp_path).exit_code == 0
    (tmp_path / "digits.toml").write_text(text)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]):
        assert here(*words, cwd=tmp_path).exit_code == 0
    after = listed(tmp_path)
    kept = [line["version"] for line in after if line["parts"] == "whole"]
    assert kept == [first, third, *(line["version"] for line in after[-2:])]
    assert {line["parts"] for line in after} == {"whole", "let go"}
    for words in (["promote", "digits.toml", second], ["serve", "digits.toml", second], ["rollback", "digits.toml", second]):
        refused = here(*words, "--reason", "r", "--yes", cwd=tmp_path)
        assert refused.exit_code == 1 and f"Version {second} is no longer kept" in refused.stderr
    proved = here("verify", "digits.toml", cwd=tmp_path)
    assert proved.exit_code == 0, proved.stderr
    stderr = here("versions", "digits.toml", cwd=tmp_path).stderr
    assert f"4 versions kept, {len(after) - 4} let go" in stderr
