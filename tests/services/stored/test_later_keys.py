"""Keys that come later part no begun branch from its file: some are added to a copy of the source, which opens kept folders.

What an author of a key writes is in ``learners/declaration.py``.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from pipelines import TIMEOUT_S, clean_environment, json_lines
from release_before import BEFORE, flowers, label

from millrace.learners.analytic.ridge import RidgeConfig
from millrace.learners.declaration import LATER, declared, later
from millrace.learners.drift.alarms import DriftConfig
from millrace.learners.replay.config import Head, Spec
from millrace.learners.river_adapter import RiverConfig
from millrace.learners.table import LEARNERS
from millrace.services.config.config import load_pipeline
from millrace.services.config.sections import BatchConfig
from millrace.services.pipeline.instance import Instance
from millrace.streams.labels.join import LabelRules
from millrace.streams.schema import Field, Label, Schema
from millrace.streams.state.held_out import HeldOutConfig

KEYS = json.loads((BEFORE.parent / "declared.json").read_text())  # of each record, as the release before wrote them
RECORDS = [Field, Label, Schema, LabelRules, BatchConfig, DriftConfig, HeldOutConfig, Spec]
DECLARED = {kind.__name__: kind for kind in RECORDS} | {"network Head": Head}
DECLARED |= {f"learner {name}": algorithm.config for name, algorithm in LEARNERS.items()}
ROOMS = ("learners", "streams", "services")
GROWN = [Field, LabelRules, BatchConfig, DriftConfig, HeldOutConfig, RidgeConfig, RiverConfig]  # that get a key more
BRANCH = {"flowers": "replay-1", "mail": "main"}
SEVERAL = """
import json, sys
from click.testing import CliRunner
from millrace.services.cli import main
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, words)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""


@pytest.mark.parametrize("name", DECLARED)
def test_a_key_that_was_not_there_before_is_a_later_one(name: str) -> None:
    """Anything else would change what every begun branch's file declares."""
    always = {key.name for key in fields(DECLARED[name]) if not key.metadata.get(LATER)}
    came, gone = always - set(KEYS.get(name, always)), set(KEYS.get(name, always)) - always
    assert not came, f"{name}: write `{min(came)}: ... = later(DEFAULT)`; learners/declaration.py says what that promises"
    assert not gone, f"{name}: {min(gone)} stands in the declaration of every begun branch, so the key must stay"


def test_every_record_that_was_listed_is_looked_at() -> None:
    """One that got another name would be passed over."""
    assert set(KEYS) <= set(DECLARED)


def test_a_later_key_keeps_what_its_default_says_beside_it() -> None:
    """A range that ``number`` gives it, for one."""
    made = next(key for key in fields(LEARNERS["er"].config) if key.name == "rate")
    assert dict(later(made).metadata) == {**made.metadata, LATER: True}  # type: ignore[attr-defined]


def grown(source: Path, kinds: list[type]) -> None:
    """Write ``tilt: int = later(0)`` below the last key of each of these classes."""
    lines = source.read_text().splitlines()
    named = {kind.__name__ for kind in kinds}
    bodies = [node.body for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef) and node.name in named]
    assert len(bodies) == len(kinds)
    for at in sorted((max(key.end_lineno for key in body if isinstance(key, ast.AnnAssign)) for body in bodies), reverse=True):
        lines.insert(at, "    tilt: int = later(0)")
    lines.insert(lines.index("from __future__ import annotations") + 1, f"from {later.__module__} import later")
    source.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of our source in which each of ``GROWN`` has one key more."""
    tree = tmp_path_factory.mktemp("next")
    for room in ROOMS:
        here = Path(str(import_module(f"millrace.{room}").__file__)).parent
        shutil.copytree(here, tree / "millrace" / room, ignore=shutil.ignore_patterns("__pycache__"))
        files = {kind: Path(str(inspect.getsourcefile(kind))) for kind in GROWN if kind.__module__.split(".")[1] == room}
        for source in set(files.values()):
            kinds = [kind for kind in files if files[kind] == source]
            grown(tree / "millrace" / room / source.relative_to(here), kinds)
    return tree


def told(release: Path, folder: Path, *commands: str) -> list[tuple[int, str, str]]:
    """What commands end with and print, one after the other in one process of that release."""
    words = json.dumps([command.split() for command in commands])
    environment = clean_environment() | {"PYTHONPATH": os.pathsep.join([str(release), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(code, out, error) for code, out, error in json_lines(done.stdout)]


@pytest.mark.slow
@pytest.mark.parametrize(("pipeline", "branch"), [("flowers", "replay-1"), ("mail", "main")])
def test_a_begun_branch_goes_on_with_new_keys_at_their_default(
    pipeline: str, branch: str, next_release: Path, folder: Path
) -> None:
    """Looked at, learned on, proved and exported by a release that has a key more in every table and in the fields."""
    if pipeline == "mail":
        label(Instance(load_pipeline(folder / "mail.toml"), folder / ".millrace" / "mail"))
    (folder / "now.jsonl").write_bytes(flowers(40))
    file, of = f"{pipeline}.toml", f"--branch {branch} --output json"
    version = "replay-1.10" if pipeline == "flowers" else "main.15"
    commands = ["send flowers.toml now.jsonl", f"config show {file} --output json", f"status {file} {of}"]
    commands += [f"run {file} {of}", f"verify {file} {of}", f"export {file} {version} new"]
    done = told(next_release, folder, *commands)
    assert [code for code, _, _ in done] == [0] * len(commands), done
    _, (_, shown, _), _, (_, ran, _), (_, proved, _), _ = done
    keys = {str(line["key"]) for line in json_lines(shown)}
    tables = ("drift", "evaluate") if pipeline == "flowers" else ("labels",)
    assert {f"{table}.tilt" for table in ("fields[0]", "learner", "batch", *tables)} <= keys, "the copy is what runs"
    assert json_lines(ran)[0]["read"] == (40 if pipeline == "flowers" else 1)
    (proof,) = json_lines(proved)
    assert json_lines(ran)[0]["version"] in proof["proved"] and (proof["unproved"], proof["findings"]) == (0, 0)
    (schema,) = (path.read_bytes() for path in (BEFORE / "exported").glob(f"{pipeline}-*/schema.json"))
    assert (folder / "new" / "schema.json").read_bytes() == schema


def test_a_new_key_with_another_value_is_refused_by_name(next_release: Path, folder: Path) -> None:
    """With what to do about it."""
    flags = [("flowers", "batch"), ("flowers", "learner"), ("flowers", "drift"), ("flowers", "evaluate"), ("mail", "labels")]
    commands = [f"run {pipeline}.toml --branch {BRANCH[pipeline]} --set {table}.tilt=3" for pipeline, table in flags]
    text = (folder / "flowers.toml").read_text()
    (folder / "tilted.toml").write_text(text.replace("size = 4", "size = 4\ntilt = 3"))
    done = told(next_release, folder, *commands, "run tilted.toml --branch replay-1")
    for (code, _, error), key in zip(done, [*(f"{table}.tilt" for _, table in flags), "fields[0].tilt"], strict=True):
        assert code == 2, error
        assert f"{key} = 3 (begun without it)" in error
        assert "Set it back, or begin a branch with --branch NEW." in error


def test_a_declaration_says_what_is_nested() -> None:
    """Records within records, and in tuples."""
    schema = Schema((Field("a"), Field("b", "categorical", categories=("x", "y"))), Label("y"))
    assert declared(schema)["fields"][1]["categories"] == ["x", "y"]
    assert declared(schema)["label"] == {"name": "y", "type": "string"}
