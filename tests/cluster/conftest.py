"""The cluster of a session, and our image in it. Where either cannot be had, every test here is skipped and says why."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_builds import build, fingerprint
from one_node import Cluster, ran, traces
from releases import Release

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace"


@pytest.fixture(scope="session")
def built() -> Cluster:
    """What `make cluster` built; not up."""
    folder = Path(os.environ.get("MILLRACE_CLUSTER", ""))
    if os.geteuid() != 0:
        pytest.skip("a cluster needs root: its kubelet mounts, and makes interfaces and rules of the packet filter")
    if not (folder / "base.oci").is_file() or not (folder / "bin" / "etcd").is_file():
        pytest.skip("no cluster is built: `make cluster` does it, and `make test-cluster` says where it lies")
    helm = shutil.which("helm") or next(iter(sorted(map(str, CACHE.glob("tools/helm-3*/helm")))), None)
    if helm is None:
        pytest.skip("no helm is here: `make charts` builds one")
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
        done = ran([*builder, "push", "-q", "localhost/millrace:test", f"oci-archive:{kept / 'draft'}:localhost/millrace:test"])
        assert done.returncode == 0, done.stderr
        (kept / "draft").rename(kept / "image.oci")
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
        yield built
    finally:
        begun = time.monotonic()
        built.script("down")
        print(f"cluster down after {time.monotonic() - begun:.1f} s")
    assert sorted(traces(built.folder) - before) == []


@pytest.fixture(scope="module")
def release(request, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A release that is installed and ready, in a namespace with the name of the test's file; it has learned nothing yet."""
    namespace = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    cluster.namespace(namespace)
    cluster.volume(namespace, 10001)
    release = Release(cluster, namespace, tmp_path_factory.mktemp(namespace))
    begun = time.monotonic()
    release.install()
    print(f"installed and ready after {time.monotonic() - begun:.1f} s")
    yield release
    cluster.forget(namespace)
