"""What is installed is what is here: the wheel, its imports, and the locks it is installed from."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from pipelines import clean_environment, json_lines, millrace, pipeline_in

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("learners", "streams", "services")
LOCKS = sorted((ROOT / "deploy" / "requirements").glob("*.txt"))
HEAVY = ("ray", "kafka", "mlflow", "torch", "river", "vllm", "onnxruntime", "matplotlib", "sklearn", "pandas")
UNNEEDED = ("pyarrow", "scipy")  # by a command that neither learns nor reads Arrow
WITHOUT_VLLM = find_spec("vllm") is None  # which has an environment of its own
MODULES = sorted(
    "millrace." + file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for room in ROOMS
    for file in (ROOT / room).rglob("*.py")
    if not (WITHOUT_VLLM and file.match("services/llm/engine.py"))
)
PACKAGES = {
    "millrace." + file.parent.relative_to(ROOT).as_posix().replace("/", ".")
    for room in ROOMS
    for file in (ROOT / room).rglob("__init__.py")
}

installed = pytest.mark.skipif(
    os.environ.get("MILLRACE_INSTALLED") != "1",
    reason="MILLRACE_INSTALLED is not 1: this may be the editable checkout, and only `make test` installs the wheel",
)


def loaded_by(*names: str) -> dict[str, str | None]:
    """The modules loaded, with their files, after a fresh Python in the checkout's root imports the names."""
    code = (
        f"import importlib, json, sys\nfor name in {list(names)!r}: importlib.import_module(name)\n"
        "print(json.dumps({name: getattr(m, '__file__', None) for name, m in list(sys.modules.items())}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def everything() -> dict[str, str | None]:
    """What is loaded once every module of ours is imported."""
    return loaded_by(*MODULES)


def unsound(lock: str) -> list[str]:
    """What a lock may not hold: the name of a host, an option that could carry one, a requirement without hashes."""
    addresses = re.findall(r"https?://\S*|--(?:extra-)?index-url\b|--find-links\b|\S+ @ \S+", lock)
    requirements = re.split(r"\n(?=[^\s#])", "\n" + lock)[1:]
    pinned = re.compile(r"[\w.-]+==\S+(?: ; [^\\]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+(?:\n    #.*)*\s*")
    return addresses + [text.split("\n")[0] for text in requirements if not pinned.fullmatch(text)]


def test_the_wheel_is_told_of_every_room() -> None:
    """A sub-room that pyproject.toml does not name is in no wheel, though an editable checkout imports it."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(told) == sorted(PACKAGES)


def test_no_module_is_known_by_a_bare_folder_name(everything) -> None:
    """Even from the checkout's root, nothing is imported as `streams`, `learners` or `services`."""
    assert set(MODULES) <= set(everything)
    assert [name for name in everything if name.split(".")[0] in ROOMS] == []


@installed
def test_what_is_tested_is_what_is_installed(everything) -> None:
    """Every module of ours comes from site-packages and not from the checkout."""
    site = str(Path(sys.prefix) / "lib")
    ours = {name: str(file) for name, file in everything.items() if name.startswith("millrace.")}
    assert {name: file for name, file in ours.items() if "site-packages" not in file or not file.startswith(site)} == {}


@installed
def test_the_wheel_holds_the_modules_of_the_tree_and_no_others() -> None:
    """What the wheel unpacked, byte for byte, is every module and type marker here; nothing stale, nothing missing."""
    in_wheel = {}
    for file in importlib.metadata.files("learning-millrace") or []:
        if file.parts[0] == "millrace" and file.suffix != ".pyc":
            in_wheel[str(file)] = Path(str(file.locate())).read_bytes()
    here = {
        f"millrace/{file.relative_to(ROOT).as_posix()}": file.read_bytes()
        for room in ROOMS
        for file in (ROOT / room).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert sorted(in_wheel) == sorted(here)
    assert [name for name in here if in_wheel[name] != here[name]] == []
    assert {f"millrace/{room}/py.typed" for room in ROOMS} <= set(here)


def loaded_by_command(*words: str, cwd: Path) -> set[str]:
    """The modules loaded once a command has run in a fresh Python."""
    code = (
        f"import sys\nfrom millrace.services.cli import main\nmain({list(words)!r}, standalone_mode=False)\nprint(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_neither_numbers_nor_configuration(tmp_path: Path) -> None:
    """Of the program, of a group and of a command: they are asked for often, and answered from the command line's own files."""
    for words in (["--help"], ["replay", "--help"], ["rollback", "--help"], ["replay", "plan", "--help"]):
        loaded = loaded_by_command(*words, cwd=tmp_path)
        assert "millrace.services.cli.commands" in loaded
        assert {name.split(".")[0] for name in loaded} & {*HEAVY, *UNNEEDED, "numpy", "msgspec", "apsw"} == set()
        assert "millrace.services.config.config" not in loaded


@pytest.mark.slow
def test_a_rollback_and_its_plan_load_what_they_need_and_no_more(tmp_path: Path) -> None:
    """Somebody waits for it at night: nothing is imported that only learning, serving or mirroring needs."""
    pipeline_in(tmp_path)
    for words in (["send", "digits.toml", "rows.jsonl"], ["run", "digits.toml"]) * 2:
        assert millrace(*words, cwd=tmp_path).returncode == 0
    follow = millrace("serve", "digits.toml", "--follow", "main", "--reason", "begin", "--yes", cwd=tmp_path)
    assert follow.returncode == 0, follow.stderr
    for more in ([], ["--yes"]):
        loaded = loaded_by_command("rollback", "digits.toml", "--reason", "garbage", *more, cwd=tmp_path)
        assert "millrace.services.decisions.decide" in loaded
        assert {name.split(".")[0] for name in loaded} & {*HEAVY, *UNNEEDED} == set()
    lines = json_lines(millrace("log", "digits.toml", "--ledger", "--output", "json", cwd=tmp_path).stdout)
    assert len(lines) == 2, lines  # begun, gone back


def test_the_console_script_prints_its_help() -> None:
    """`millrace --help` works as installed beside this Python."""
    script = Path(sys.executable).with_name("millrace")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "millrace" in done.stdout


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_host_and_hashes_every_requirement(lock: Path) -> None:
    """A lock says what to install and how to know it, never where from."""
    assert unsound(lock.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "--index-url somewhere",
        "--find-links wheels",
        "click==8.5.1",
        "click>=8 \\\n    --hash=sha256:" + "0" * 64,
        "click==8.5.1 \\\n    --hash=sha256:" + "0" * 63,
        "click @ file:///click.whl \\\n    --hash=sha256:" + "0" * 64,
        "# from http://example.invalid/simple",
    ],
)
def test_an_unsound_line_in_a_lock_is_caught(line: str) -> None:
    """A host, an option that carries one, and a requirement without version or hash are each caught."""
    sound = "# made by make lock\nnumpy==2.4.6 \\\n    --hash=sha256:" + "a" * 64 + "\n    # via scipy\n"
    assert unsound(sound) == []
    assert unsound(sound + line + "\n") != []


def test_the_locks_agree_with_each_other() -> None:
    """What `make run`, `make up` and `make image` install is, version for version, part of what the tests ran with."""
    run, serve, image, test = (
        set(re.findall(r"^[\w.-]+==\S+", (ROOT / "deploy" / "requirements" / f"{name}.txt").read_text(), re.MULTILINE))
        for name in ("run", "serve", "image", "test")
    )
    assert [lock.stem for lock in LOCKS] == ["clients", "continual", "image", "llm", "peers", "run", "serve", "test", "uv"]
    assert run < serve < test
    assert image < test


def test_no_lock_that_records_addresses_is_here() -> None:
    """`uv.lock` would record where packages were downloaded from."""
    assert not (ROOT / "uv.lock").exists()


@pytest.mark.xdist_group("package")
def test_a_group_of_tests_stays_in_one_worker(request) -> None:
    """Several tests serve, or play a story once for all of them; releases of pytest and pytest-xdist must fit each other."""
    assert request.node.nodeid.endswith("@package") == bool(request.config.getoption("loadgroup", False))
