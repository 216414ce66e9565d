"""What errors say of a missing package: it names what works where it is said. Here each of its commands is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pipelines import clean_environment

from millrace.learners import distribution

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WRONG = re.compile(
    r"(?<![\w./-])millrace(?:\\\[|\[[a-z])|pip install [^\n`]*(?<![\w./-])millrace\b|version\([\"']millrace[\"']\)"
)
RECORDED = "tests/recorded/"  # what earlier releases wrote


def written() -> dict[str, str]:
    """The text of every file that is ours to write: path -> text."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kinds = (".py", ".md", ".toml", ".sh", ".yaml", ".tpl", ".txt", ".in", "Makefile", "Dockerfile")
    paths = [name for name in told.stdout.split("\0") if name.endswith(kinds) and not name.startswith(RECORDED)]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in paths if (ROOT / name).is_file()}


def made_of(variable: str) -> set[str]:
    """The words of a variable of the Makefile, with those of the variables in it."""
    (line,) = re.findall(rf"^{variable} := ([^#\n]*)", MAKEFILE, re.MULTILINE)
    return {word for part in line.split() for word in (made_of(part[2:-1]) if part.startswith("$(") else {part})}


def test_nobody_is_sent_to_the_package_of_somebody_else() -> None:
    """No source and no page names an extra of `millrace`, installs `millrace`, or asks for its version."""
    beside = (Path(__file__).relative_to(ROOT).as_posix(),)
    texts = {name: text for name, text in written().items() if name not in beside}
    assert len(texts) > 500
    assert [(name, found) for name, text in texts.items() for found in WRONG.findall(text)] == []


@pytest.mark.parametrize(
    "line",
    [
        "pip install 'millrace[kafka]'",
        "install millrace[onnx]",
        "uv pip install -q millrace",
        'version("millrace")',
        r"'millrace\[",
    ],
)
def test_a_line_that_names_it_is_caught(line: str) -> None:
    """Each way in which it was written once."""
    assert WRONG.search(line)
    assert not WRONG.search("pip install 'learning-millrace[kafka] @ file:///millrace/dist/x.whl'")
    assert not WRONG.search("`/v/bin/python -m pip install --editable '/home/me/millrace[kafka]'`")


def test_the_name_is_that_of_the_project() -> None:
    """As pyproject.toml has it, written as indexes write it, and it is what is installed here."""
    assert PROJECT["name"] == distribution.NAME == re.sub(r"[-_.]+", "-", distribution.NAME).lower()
    assert distribution.release() == PROJECT["version"]


def test_extras_are_known_by_one_list() -> None:
    """What `make setup` and `make image` take, and each extra that an error names, is as Makefile and pyproject.toml say."""
    assert made_of("SHIPPED") == distribution.IN_IMAGES
    assert made_of("TESTED") == distribution.IN_SETUP
    extras = set(PROJECT["optional-dependencies"])
    assert extras == distribution.IN_SETUP | {"llm-cpu", "llm-gpu"}
    sources = [text for name, text in written().items() if name.startswith(("learners/", "streams/", "services/"))]
    named = [
        extra
        for text in sources
        for found in re.findall(r"how_to_get\(['\"]([\w,-]+)['\"]\)", text)
        for extra in found.split(",")
    ]
    assert len(named) >= 12 and set(named) <= extras
    page = (ROOT / "docs" / "how-to" / "extras.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([\w-]+)`", " ".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))) == extras


def test_an_image_says_what_it_was_built_with() -> None:
    """The file that tells an image from an environment lies where the build writes it."""
    build = (ROOT / "deploy" / "image" / "install.sh").read_text(encoding="utf-8")
    assert f'echo "$EXTRAS" > /opt/millrace/{distribution.IMAGE_EXTRAS}\n' in build
    assert '"$uv" venv --quiet --python "$(command -v python3)" /opt/millrace\n' in build


def command(said: str) -> str:
    """The command that a sentence has between backticks."""
    (found,) = re.findall(r"`([^`]+)`", said)
    return str(found)


def ran(words: list[str] | str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What somebody types, in a shell where it is one text. The index, and its certificates, are as the machine has them."""
    return subprocess.run(
        words,
        cwd=cwd,
        env=clean_environment() | {"UV_SYSTEM_CERTS": "true"} | environment,
        shell=isinstance(words, str),
        capture_output=True,
        text=True,
        check=False,
    )


def done(words: list[str] | str, cwd: Path, **environment: str) -> str:
    """What a command prints that must succeed."""
    told = ran(words, cwd, **environment)
    assert told.returncode == 0, f"{words}\n{told.stdout[-2000:]}{told.stderr[-2000:]}"
    return told.stdout


def imports(python: Path, module: str) -> bool:
    """Whether a Python has a module."""
    return ran([str(python), "-c", f"import {module}"], python.parent).returncode == 0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of what is here, after `make setup`; a blank in its path, so that what is not quoted is found out."""
    folder = tmp_path_factory.mktemp("a") / "check out"
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE", "NOTICE", *written()):
        if name.startswith(("learners/", "streams/", "services/", "deploy/requirements/")) or "/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    for room in ("learners", "streams", "services"):
        for file in (ROOT / room).rglob("*"):
            if file.is_file() and file.suffix != ".pyc" and not (folder / file.relative_to(ROOT)).exists():
                (folder / file.relative_to(ROOT)).write_bytes(file.read_bytes())
    done(["make", "setup", f"PYTHON={sys.executable}"], folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    """The wheel of that checkout."""
    done([str(checkout / ".tools/bin/uv"), "build", "--quiet", "--wheel", "-o", "dist"], checkout)
    (built,) = (checkout / "dist").glob("learning_millrace-*.whl")
    return built


def environment(checkout: Path, folder: Path, *words: str) -> Path:
    """A Python of its own, without pip, with what ``words`` name."""
    uv = str(checkout / ".tools/bin/uv")
    done([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], checkout)
    done([uv, "pip", "install", "--quiet", "--python", str(folder), *words], checkout)
    return folder / "bin" / "python"


def told(python: Path, extras: str, **environment: str) -> str:
    """What errors say in an environment; asked from a folder that says nothing of it."""
    code = f"from millrace.learners.distribution import how_to_get; print(how_to_get({extras!r}))"
    return done([str(python), "-c", code], python.parents[2], **environment).strip()


@pytest.mark.slow
@pytest.mark.xdist_group("extras")
class TestWhatIsSaidIsRun:
    """Each in an environment of its own, with packages from the index."""

    def test_make_setup_brings_the_clients_and_is_quick_the_second_time(self, checkout: Path) -> None:
        """Parquet and Kafka are there, nothing is left to do, and an extra that is none is refused with those there are."""
        python = checkout / ".venv" / "bin" / "python"
        assert all(imports(python, module) for module in ("pyarrow", "kafka", "lz4", "sklearn", "millrace.services.api"))
        assert "Nothing to be done for 'setup'" in done(["make", "setup"], checkout)
        refused = ran(["make", "setup", "EXTRAS=kafkaa"], checkout)
        assert refused.returncode != 0 and "EXTRAS=kafkaa: there is no such extra here. Take of avro backbone" in refused.stderr

    def test_a_lock_that_does_not_fit_stops_an_extra(self, checkout: Path) -> None:
        """What an extra brings is compared with the hashes of the lock."""
        lock = checkout / "deploy/requirements/test.txt"
        kept = lock.read_text(encoding="utf-8")
        name = "fastavro=="
        begin = kept.index(f"\n{name}")
        wrong = re.sub(r"sha256:\w{4}", "sha256:0000", kept[begin : kept.index("# via", begin)])
        lock.write_text(kept[:begin] + wrong + kept[kept.index("# via", begin) :], encoding="utf-8")
        try:
            refused = ran(["make", "setup", "EXTRAS=avro"], checkout)
            assert refused.returncode != 0 and "Hash mismatch" in refused.stderr
        finally:
            lock.write_text(kept, encoding="utf-8")
        assert not imports(checkout / ".venv" / "bin" / "python", "fastavro")

    def test_a_checkout_is_told_its_make(self, checkout: Path, tmp_path: Path) -> None:
        """The error of a command, from anywhere; once its command has run, the same command gets beyond it."""
        (tmp_path / "pipeline.toml").write_text(PIPELINE, encoding="utf-8")
        mirror = [str(checkout / ".venv/bin/millrace"), "mirror", "pipeline.toml", "--once"]
        said = ran(mirror, tmp_path).stderr
        assert command(said) == f"make -C {shlex.quote(str(checkout))} setup EXTRAS=mlflow"
        done(command(said), tmp_path)
        assert "Mirroring needs MLflow" not in ran(mirror, tmp_path, MLFLOW_HTTP_REQUEST_TIMEOUT="1").stderr
        assert imports(checkout / ".venv" / "bin" / "python", "mlflow")

    def test_an_environment_beside_a_checkout_is_told_its_uv(self, checkout: Path, tmp_path: Path) -> None:
        """Where the checkout is editable, but the environment is not the one that `make` makes."""
        python = environment(checkout, tmp_path / "own", "--editable", str(checkout))
        said = command(told(python, "avro"))
        assert said.startswith(f"{shlex.quote(str(checkout / '.tools/bin/uv'))} pip install --python {python} --editable ")
        assert not imports(python, "fastavro")
        done(said, tmp_path)
        assert imports(python, "fastavro") and told(python, "kafka").replace("kafka", "avro") == f"Run `{said}`."

    @pytest.mark.parametrize("has", ["pip", "uv", "neither"])
    def test_a_wheel_is_told_where_it_came_from(self, checkout: Path, wheel: Path, tmp_path: Path, has: str) -> None:
        """By the environment's own pip where it has one, else by uv; where neither is there, by the pip that Python brings."""
        python = environment(checkout, tmp_path / "own", str(wheel), *(["pip"] if has == "pip" else []))
        path = f"{checkout / '.tools/bin'}:/usr/bin:/bin" if has == "uv" else "/usr/bin:/bin"
        installer = {"pip": f"{python} -m pip install", "uv": f"uv pip install --python {python}"}
        said = command(told(python, "avro", PATH=path))
        begins = installer.get(has, f"{python} -m ensurepip && {python} -m pip install")
        assert said == f"{begins} 'learning-millrace[avro] @ {wheel.as_uri()}'"
        assert not imports(python, "fastavro")
        done(said, tmp_path, PATH=path)
        assert imports(python, "fastavro") and imports(python, "millrace.services.api")

    def test_a_wheel_that_is_gone_is_asked_for(self, checkout: Path, wheel: Path, tmp_path: Path) -> None:
        """The file is named, and the command works once it is back."""
        moved = tmp_path / wheel.name
        moved.write_bytes(wheel.read_bytes())
        python = environment(checkout, tmp_path / "own", str(moved))
        moved.unlink()
        said = told(python, "avro", PATH=f"{checkout / '.tools/bin'}:{os.environ['PATH']}")
        assert said.startswith(f"{moved}, which was installed, is gone: put it back, then run `")
        assert ran(command(said), tmp_path, PATH=f"{checkout / '.tools/bin'}:{os.environ['PATH']}").returncode != 0
        moved.write_bytes(wheel.read_bytes())
        done(command(said), tmp_path, PATH=f"{checkout / '.tools/bin'}:{os.environ['PATH']}")
        assert imports(python, "fastavro")

    def test_an_export_asks_for_what_its_remark_finds(self, checkout: Path, wheel: Path, tmp_path: Path) -> None:
        """By the remark's own words, in an environment that has nothing, and by the variable that MLflow's installers read."""
        (tmp_path / "requirements.txt").write_text(distribution.requirement("avro"), encoding="utf-8")
        remark = (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines()[0]
        (words,) = re.findall(r": (pip install --find-links FOLDER -r requirements\.txt),", remark)
        python = environment(checkout, tmp_path / "own", "pip")
        assert ran(f"{python} -m {words.replace('--find-links FOLDER ', '')} --quiet", tmp_path).returncode != 0
        links = words.replace("FOLDER", shlex.quote(str(wheel.parent))).replace(
            "pip install", "pip install --quiet --python own", 1
        )
        done(f"{shlex.quote(str(checkout / '.tools/bin/uv'))} {links}", tmp_path)
        assert imports(python, "fastavro")
        assert json.loads(done([str(python), "-c", RELEASE], tmp_path)) == PROJECT["version"]
        again = told(python, "kafka")  # nothing says where it came from
        (words,) = re.findall(r"path or address: (pip install .* @ WHEEL')\.$", again)
        done(f"{python} -m {words.replace('WHEEL', wheel.as_uri())}", tmp_path)
        assert imports(python, "kafka")

    def test_a_repository_is_named_with_its_commit(self, checkout: Path, tmp_path: Path) -> None:
        """What was installed from git comes from the same commit again."""
        folder = tmp_path / "repository"
        shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".venv", ".tools", "dist", "*.egg-info", "build"))
        author = "git -c user.name=a -c user.email=a@example.org"
        done(f"git init -q . && git add -A && {author} commit -q -m all", folder)
        commit = done(["git", "rev-parse", "HEAD"], folder).strip()
        python = environment(checkout, tmp_path / "own", f"{distribution.NAME} @ git+{folder.as_uri()}")
        path = f"{checkout / '.tools/bin'}:{os.environ['PATH']}"
        said = command(told(python, "avro", PATH=path))
        assert said.endswith(f"'learning-millrace[avro] @ git+{folder.as_uri()}@{commit}'")
        done(said, tmp_path, PATH=path)
        assert imports(python, "fastavro")

    def test_in_an_image_another_image_is_named(self, checkout: Path, wheel: Path, tmp_path: Path) -> None:
        """With the extras that it has and those wanted; never one that no image may have. tests/cluster builds one so."""
        python = environment(checkout, tmp_path / "own", str(wheel))
        extras = tmp_path / "own" / distribution.IMAGE_EXTRAS
        extras.parent.mkdir(parents=True)
        extras.write_text("serve,kafka\n", encoding="utf-8")
        assert command(told(python, "parquet,kafka")) == "make image EXTRAS=serve,kafka,parquet"
        assert told(python, "demo").startswith("No image may have demo; a checkout may")


RELEASE = "import json; from millrace.learners.distribution import release; print(json.dumps(release()))"
PIPELINE = """
name = "mirrored"
fields = [{ name = "x" }]
label = { name = "y" }
learner = { kind = "ridge" }
mlflow = { uri = "http://127.0.0.1:9" }
"""


def test_an_environment_of_the_old_name_is_told_to_be_made_anew(tmp_path: Path) -> None:
    """The module is found there, and no distribution of our name."""
    (tmp_path / "millrace").mkdir()
    (tmp_path / "millrace" / "learners").symlink_to(ROOT / "learners")
    code = "from millrace.learners.distribution import release; release()"
    told = ran([sys.executable, "-S", "-c", code], tmp_path, PYTHONPATH=str(tmp_path))
    assert told.returncode == 1
    assert "not as learning-millrace: it was set up for an earlier release. In a checkout run `make setup`;" in told.stderr
