"""The cluster of a session, and our image in it. Where no cluster is built, every test here is skipped and says why, in CI too.

What else they need is there in CI: without it they fail.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_builds import build, extend, fingerprint, packed
from one_node import Cluster, ran, traces
from pipelines import lacks
from releases import Release, installed

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace"


@pytest.fixture(scope="session")
def built() -> Cluster:
    """What `make cluster` built; not up."""
    folder = Path(os.environ.get("MILLRACE_CLUSTER", ""))
    if os.geteuid() != 0:
        lacks("a cluster needs root: its kubelet mounts, and makes interfaces and rules of the packet filter")
    if not (folder / "base.oci").is_file() or not (folder / "bin" / "etcd").is_file():
        pytest.skip("no cluster is built: `make cluster` does it, and `make test-cluster` says where it lies")
    helm = shutil.which("helm") or next(iter(sorted(map(str, CACHE.glob("tools/helm-3*/helm")))), None)
    if helm is None:
        lacks("no helm is here: `make charts` builds one")
    return Cluster(folder, Path(helm))


@pytest.fixture(scope="session")
def builder(built: Cluster) -> list[str]:
    """buildah, with a store of its own."""
    return ["buildah", "--root", str(built.folder / "images"), "--runroot", str(built.folder / "images-run")]


@pytest.fixture(scope="session")
def archive(built: Cluster, builder: list[str]) -> Path:
    """The image as a file, built where what it is made of has changed; its papers beside it."""
    kept = built.folder / "image" / fingerprint()
    if not (kept / "image.oci").is_file():
        shutil.rmtree(kept.parent, ignore_errors=True)
        for kind in ("rm", "rmi"):  # of earlier builds
            ran([*builder, kind, "--all", *(["--force"] if kind == "rmi" else [])])
        begun = time.monotonic()
        build(builder, built.folder / "base.oci", "localhost/millrace:test", kept)
        packed(builder, "localhost/millrace:test", kept / "image.oci")
        print(f"image built in {time.monotonic() - begun:.0f} s, {(kept / 'image.oci').stat().st_size / 1e6:.0f} MB packed")
    return kept / "image.oci"


@pytest.fixture(scope="session")
def cluster(built: Cluster, archive: Path) -> Iterator[Cluster]:
    """The cluster, up and with the image; afterwards nothing of it is left on the machine."""
    before = traces(built.folder)
    begun = time.monotonic()
    try:
        built.script("up")
        print(f"cluster ready after {time.monotonic() - begun:.1f} s")
        begun = time.monotonic()
        built.script("load", str(archive))
        print(f"image imported in {time.monotonic() - begun:.1f} s")
        print(
            "NetworkPolicy is not enforced: the bridge of this cluster has no such thing, so it is rendered and schema-checked"
        )
        yield built
    finally:
        begun = time.monotonic()
        built.script("down")
        print(f"cluster down after {time.monotonic() - begun:.1f} s")
    assert sorted(traces(built.folder) - before) == []


@pytest.fixture(scope="module")
def release(request, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A release that is installed and ready, in a namespace with the name of the test's file; it has learned nothing yet."""
    namespace = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    cluster.namespace(namespace)
    with installed(cluster, namespace, tmp_path_factory.mktemp(namespace)) as release:
        yield release


@pytest.fixture(scope="session")
def newer(cluster: Cluster, builder: list[str], archive: Path) -> str:
    """The tag of a later release's image in the cluster: the other's, with a revision more of how rows are folded."""
    if not (kept := archive.parent / "newer.oci").is_file():
        begun = time.monotonic()
        extend(builder, archive, "localhost/millrace:newer", kept)
        print(f"newer image made in {time.monotonic() - begun:.0f} s")
    cluster.script("load", str(kept))
    return "newer"
