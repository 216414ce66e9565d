"""Builds of the image as `make image` does them, and what tells one state of the sources from another."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from one_node import ran

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
