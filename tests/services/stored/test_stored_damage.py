"""What is stored and cannot be read is answered with what to do: in every message, and on the kept folder once damaged."""

from __future__ import annotations

import ast
import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import msgspec
import pytest
from pipelines import here
from release_before import BEFORE

from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.services.registry.export import opened
from millrace.services.replay.plan import plans
from millrace.streams.errors import DamageError
from millrace.streams.journal.journal import summarise

ROOMS = ("learners", "streams", "services")
DAMAGE = ("DamageError", "MissingPartError", "StateDamageError")
# A message tells what to do, or ends with a sentence that does: a constant, or that of another message.
DOES = re.compile(r"\b(Restore|Use|Export|Make|Plan|Set|Begin|Or|Change|replay|begin)\b|[.] +\{(RESTORE|AGAIN|error)\}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the kept folder, to be damaged."""
    shutil.copy(BEFORE / "flowers.toml", tmp_path)
    shutil.copytree(BEFORE / "home", tmp_path / ".millrace")
    return tmp_path


def messages(source: Path) -> list[tuple[int, str]]:
    """Line and text of every DamageError that a file makes; a cause within another's sentence begins with a small letter."""
    calls = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in DAMAGE]
    return [(call.lineno, "".join(map(written, call.args))) for call in named]


def written(text: ast.expr) -> str:
    """The constant parts of a text; of what is filled in, the name."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else f" {ast.unparse(part)} " for part in parts)


@pytest.mark.parametrize("room", ROOMS)
def test_every_message_about_damage_says_what_to_do(room: str) -> None:
    """So nobody is left with a bare finding."""
    folder = Path(str(import_module(f"millrace.{room}").__file__)).parent
    calls = [(path, *call) for path in sorted(folder.rglob("*.py")) for call in messages(path)]
    assert calls
    bare = [f"{path.name}:{line} {text}" for path, line, text in calls if not DOES.search(text)]
    assert not [message for message in bare if not re.search(r":\d+ [a-z]", message)]


@pytest.mark.parametrize(
    ("file", "command", "says"),
    [
        ("journal/replay-1.sqlite", "run flowers.toml --branch replay-1", "Restore it from a copy"),
        ("ledger.sqlite", "status flowers.toml", "Restore it from a copy"),
        ("log.sqlite", "run flowers.toml --branch replay-1", "Restore it from a copy"),
    ],
)
def test_a_file_that_is_no_database_is_named(file: str, command: str, says: str, folder: Path) -> None:
    """With its path."""
    (folder / ".millrace" / "flowers" / file).write_bytes(b"this is not a database, whatever its name says" * 100)
    done = here(*command.split(), cwd=folder)
    assert done.exit_code not in (0, 70) and file in done.stderr and says in done.stderr, done.stderr


def test_an_entry_of_a_later_release_says_which_to_use(folder: Path) -> None:
    """A key that this release does not know is not passed over."""
    from crc32c import crc32c

    pipeline = Instance(load_pipeline(folder / "flowers.toml"), folder / ".millrace" / "flowers")
    body = b'{"kind":"step","branch":"replay-1","seq":18,"epoch":2,"reads":[],"clock_ms":1,"rejected":[],"tilt":1}'
    pipeline.journal("replay-1").send(body[:-1] + b',"crc32c":' + str(crc32c(body)).encode() + b"}").offset()
    done = here("run", "flowers.toml", "--branch", "replay-1", cwd=folder)
    assert (
        done.exit_code != 0
        and "was written by another release" in done.stderr
        and "Use the release that wrote it." in done.stderr
    )


def test_a_checkpoint_of_a_later_release_says_which_to_use(folder: Path) -> None:
    """The version that has it cannot be gone back to; the message names it."""
    pipeline = Instance(load_pipeline(folder / "flowers.toml"), folder / ".millrace" / "flowers")
    mark = next(each for each in summarise(pipeline.journal("main"), "main").marks if each.version == "main.9")
    path = folder / ".millrace" / "flowers" / "store" / "main" / str(mark.checkpoint)
    path.write_bytes(path.read_bytes()[:-1])
    done = here("rollback", "flowers.toml", "main.9", "--reason", "x", "--yes", cwd=folder)
    assert done.exit_code != 0 and "Restore it from a copy." in done.stderr, done.stderr


def test_a_plan_of_a_later_release_is_to_be_made_again(folder: Path) -> None:
    """Plans are cheap."""
    pipeline = Instance(load_pipeline(folder / "flowers.toml"), folder / ".millrace" / "flowers")
    (path,) = (plans(pipeline).root / "replay").iterdir()
    name = plans(pipeline).put("replay", msgspec.json.encode(json.loads(path.read_bytes()) | {"tilt": 1}))
    done = here("replay", "run", "flowers.toml", name, cwd=folder)
    assert done.exit_code != 0 and "Make a new plan." in done.stderr, done.stderr


@pytest.mark.parametrize("file", ["manifest.json", "schema.json", "weights.safetensors"])
def test_an_exported_version_that_is_damaged_says_so(file: str, tmp_path: Path) -> None:
    """Cut short, it is not opened."""
    folder = shutil.copytree(next((BEFORE / "exported").glob("flowers-*")), tmp_path / "version")
    (folder / file).write_bytes((folder / file).read_bytes()[:-10])
    with pytest.raises(DamageError, match=r"Export it again|Restore the state from a copy"):
        opened(folder)
