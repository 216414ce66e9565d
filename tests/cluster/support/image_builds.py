"""Builds of the image as `make image` does them, and what tells one state of the sources from another."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

from one_node import output, ran

from millrace.streams.state.fold import REVISION

ROOT = Path(__file__).resolve().parents[3]
SOURCES = (
    "deploy/Dockerfile",
    "deploy/image",
    "deploy/requirements",
    "learners",
    "services",
    "streams",
    "pyproject.toml",
    "NOTICE",
    "README.md",
    "LICENSE",
)


def build(builder: list[str], base: Path, name: str, papers: Path) -> None:
    """Build the image anew on a base, as `make image` does."""
    asked = {"BUILDER": " ".join(builder), "BASE": f"oci-archive:{base}", "FRESH": "1"}
    if certificates := os.environ.get("SSL_CERT_FILE"):
        asked["CERTIFICATES"] = certificates
    done = ran([str(ROOT / "deploy" / "image" / "build.sh"), name, str(papers)], os.environ | asked)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def packed(builder: list[str], name: str, file: Path) -> None:
    """Write an image to a file, which is there only when it is whole."""
    draft = file.with_suffix(".draft")
    output([*builder, "push", "-q", name, f"oci-archive:{draft}:{name}"])
    draft.rename(file)


def extend(builder: list[str], archive: Path, name: str, file: Path) -> None:
    """Write the image of a later release: that of an archive, with a revision more of how rows are folded.

    It goes on with branches of the earlier revision, and the earlier release cannot with those that it begins.
    """
    container = output([*builder, "from", f"oci-archive:{archive}"]).strip()
    (package,) = Path(output([*builder, "mount", container]).strip()).glob("opt/millrace/lib/python3*/site-packages/millrace")
    rewritten(package / "streams/state/fold.py", r"^REVISION = \d+", f"REVISION = {REVISION + 1}")
    features = r"^    REVISION: Features,"
    rewritten(package / "streams/branch/revisions.py", features, f"    {REVISION}: Features,\n{features[1:]}")
    output([*builder, "umount", container])
    output([*builder, "commit", "-q", "--rm", container, name])
    packed(builder, name, file)


def rewritten(module: Path, pattern: str, replacement: str) -> None:
    """Change one line of a module in an image, whose bytecode is not compared with it."""
    text, count = re.subn(pattern, replacement, module.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert count == 1, f"{pattern} is not there once in {module}"
    module.write_text(text, encoding="utf-8")
    for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"):
        compiled.unlink()


def fingerprint() -> str:
    """Of everything that the image is built from, and of the commit, whose time its files have."""
    tracked = subprocess.run(
        ["git", "ls-files", "pyproject.toml", *SOURCES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    digest = hashlib.sha256(commit)
    for name in sorted(tracked.splitlines()):
        digest.update(f"{name}\0".encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()[:16]
