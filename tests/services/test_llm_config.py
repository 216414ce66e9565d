"""The table [llm]: what it needs, what cannot stand beside it, and the folders that it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import tiny_draft
from draft_pipelines import loaded, tiny

from millrace.learners.errors import ConfigError
from millrace.services.config import digests as digests_of_files
from millrace.services.config.config import load_pipeline
from millrace.services.config.digests import Digests
from millrace.streams.records import kept_ms


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are remembered in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


REFUSED = {
    "fields": '[[fields]]\nname = "x"\n',
    "label": '[label]\nname = "y"\n',
    "labels": "[labels]\nhorizon_ms = 1000\n",
    "evaluate": "[evaluate]\n",
    "memory": "[memory]\n",
}


@pytest.mark.parametrize("table", REFUSED)
def test_what_is_made_for_rows_does_not_stand_beside_llm(tmp_path: Path, table: str) -> None:
    """Each table is refused by name, in one sentence."""
    with pytest.raises(ConfigError, match=rf"{table} does not stand beside \[llm\]"):
        tiny(tmp_path, REFUSED[table])


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("shards=2", "shards does not stand beside"),
        ("weight=w", "weight does not stand beside"),
        ("unknown=ignore", "unknown does not stand beside"),
        ("log.retention_hours=3", "llm.keep_ms says how long"),
        ("drift={act='relearn'}", "it would keep whole completions"),
        ("learner.kind=ridge", "with \\[llm\\] there are completions"),
        ("learner.start={}", "is not to be written"),
        ("llm.capture=some", "llm.capture"),
        ("llm.k=0", "k = 0: must be from 1 to 255"),
        ("llm.top=99", "the models know"),
        ("llm.draft=nowhere", "there is no such folder"),
        ("llm.draft_sha256=" + "0" * 64, "Put the other one back"),
    ],
)
def test_a_key_that_cannot_be_so_is_named(tmp_path: Path, flag: str, sentence: str) -> None:
    """And says what to do."""
    tiny(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        load_pipeline(tmp_path / "answers.toml", [flag])


@pytest.mark.parametrize("key", ["target", "draft", "capture"])
def test_what_llm_must_say_has_no_default(tmp_path: Path, key: str) -> None:
    """Above all not whose completions are captured."""
    tiny(tmp_path)
    text = (tmp_path / "answers.toml").read_text()
    (tmp_path / "answers.toml").write_text("".join(line for line in text.splitlines(True) if not line.startswith(key)))
    with pytest.raises(ConfigError, match=f"llm.{key} is missing"):
        load_pipeline(tmp_path / "answers.toml")


def test_a_draft_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """Its tokens would be none of the target's."""
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_draft.folder().iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text()) | {"vocab_size": 31}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="a vocabulary of 32 tokens and llm.target one of 31"):
        loaded(tmp_path, other, tiny_draft.folder())


@pytest.mark.parametrize("keep_ms", [1, 7, 3_600_000, 604_800_000])
def test_a_completion_is_kept_as_long_as_the_file_says(tmp_path: Path, keep_ms: int) -> None:
    """To the millisecond, whatever that is in hours; a millisecond is not for ever."""
    tiny(tmp_path)
    assert kept_ms(load_pipeline(tmp_path / "answers.toml", [f"llm.keep_ms={keep_ms}"]).pipeline.log.retention_hours) == keep_ms


def test_models_are_hashed_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was hashed is remembered by size and times; who cannot remember hashes every time, and gets the same."""
    target = tmp_path / "target"
    shutil.copytree(tiny_draft.folder(), target)
    first = loaded(tmp_path, target, tiny_draft.folder(), k=tiny_draft.K, top=tiny_draft.TOP).pipeline.llm
    [remembered] = (tmp_path / "cache").rglob("*.json")
    remembered.write_bytes(msgspec.json.encode(dict.fromkeys(msgspec.json.decode(remembered.read_bytes()), "0" * 64)))
    assert load_pipeline(tmp_path / "answers.toml").pipeline.llm.target_sha256 != first.target_sha256  # not read again
    remembered.write_bytes(b"{")
    assert load_pipeline(tmp_path / "answers.toml").pipeline.llm == first
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    assert load_pipeline(tmp_path / "answers.toml").pipeline.llm.target_sha256 != first.target_sha256
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert load_pipeline(tmp_path / "answers.toml").pipeline.llm.draft_sha256 == first.draft_sha256


def test_a_target_of_many_files_is_hashed_once(tmp_path: Path) -> None:
    """300 of them, more than a large model has: none is read a second time."""
    digests, paths = Digests(tmp_path / "cache"), [tmp_path / f"{number}.safetensors" for number in range(300)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number % 256]))
    first = [digests.of(path) for path in paths]
    file = tmp_path / "cache" / "digests.json"
    file.write_bytes(msgspec.json.encode(dict.fromkeys(msgspec.json.decode(file.read_bytes()), "0" * 64)))
    assert [digests.of(path) for path in paths] == ["0" * 64] * 300 and len(set(first)) == 256


def test_of_more_files_than_fit_the_newest_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are hashed again, and get the same."""
    monkeypatch.setattr(digests_of_files, "MOST", 3)
    digests, paths = Digests(tmp_path / "cache"), [tmp_path / f"{number}.safetensors" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    first = [digests.of(path) for path in paths]
    remembered = msgspec.json.decode((tmp_path / "cache" / "digests.json").read_bytes())
    assert list(remembered.values()) == first[2:] and [digests.of(path) for path in paths] == first


def test_without_the_models_the_file_says_what_they_are(tmp_path: Path) -> None:
    """A rollback needs neither; what a token may be is then to be written."""
    tiny(tmp_path)
    flags = ["llm.target=gone", "llm.draft=gone", f"llm.target_sha256={'a' * 64}", f"llm.draft_sha256={'b' * 64}"]
    with pytest.raises(ConfigError, match="llm.vocabulary is missing"):
        load_pipeline(tmp_path / "answers.toml", flags)
    said = load_pipeline(tmp_path / "answers.toml", [*flags, "llm.vocabulary=32"]).pipeline.llm
    assert (said.vocabulary, said.draft_sha256) == (32, "b" * 64)


def with_tokenizer(folder: Path, **tokenizer: object) -> Path:
    """The tiny draft's folder with a tokenizer."""
    shutil.copytree(tiny_draft.folder(), folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


VOCABULARY = {"a": 0, "b": 1, "c": 2}
END = {"id": 3, "content": "<end>", "special": True}


@pytest.mark.parametrize(
    ("tokenizer", "token"),
    [
        ({"model": {"vocab": {"b": 0, "a": 1, "c": 2}}, "added_tokens": [END]}, "'b' is 0 .* 1 in"),
        ({"model": {"vocab": [["a", -1.0], ["c", -2.0], ["b", -3.0]]}, "added_tokens": [END]}, "'c' is 1 .* 2 in"),
        ({"model": {"vocab": VOCABULARY}, "added_tokens": [END | {"id": 4}]}, "'<end>' is 4 .* 3 in"),
        ({"model": {"vocab": VOCABULARY}}, "'<end>' is None .* 3 in"),
    ],
)
def test_a_draft_of_other_tokens_is_refused(tmp_path: Path, tokenizer: dict, token: str) -> None:
    """As many tokens do not make them the same; a tokenizer that only lies otherwise in its file does."""
    target = with_tokenizer(tmp_path / "target", model={"vocab": VOCABULARY}, added_tokens=[END])
    same = with_tokenizer(
        tmp_path / "same", version="2", model={"vocab": [[token, 0] for token in VOCABULARY]}, added_tokens=[END]
    )
    other = with_tokenizer(tmp_path / "draft", **tokenizer)
    numbers = {"k": tiny_draft.K, "top": tiny_draft.TOP}
    assert loaded(tmp_path, target, same, **numbers).pipeline.llm.vocabulary == 32
    with pytest.raises(ConfigError, match=f"other tokens than llm.target: {token}"):
        loaded(tmp_path, target, other, **numbers)


def test_a_draft_learns_no_rows(tmp_path: Path) -> None:
    """Without a table [llm] there is nothing that it could learn from."""
    (tmp_path / "rows.toml").write_text(
        'name = "rows"\nlabel = { name = "y" }\nfields = [{ name = "x" }]\nlearner = { kind = "draft" }\n'
    )
    with pytest.raises(ConfigError, match="add the table \\[llm\\]"):
        load_pipeline(tmp_path / "rows.toml")


def test_what_a_branch_learns_by_is_what_changes_the_draft(tmp_path: Path) -> None:
    """Places of folders, who is captured and for how long may change; k, top and both folders' sha256 may not."""
    first = tiny(tmp_path).loaded.pipeline.schema.declared
    path = tmp_path / "answers.toml"
    for flag in ("llm.keep_ms=5", "llm.capture=none"):
        assert load_pipeline(path, [flag]).pipeline.schema.declared == first
    for flag in ("llm.k=2", "llm.top=4"):
        assert load_pipeline(path, [flag]).pipeline.schema.declared != first
    assert str(tmp_path).encode() not in first and str(tiny_draft.folder()).encode() not in first
