"""A back-up while it learns, and a release that begins with it after everything was lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from one_node import Cluster
from releases import VALUES, Release

pytestmark = pytest.mark.cluster
CLAIM = {"accessModes": ["ReadWriteOnce"], "storageClassName": "bare", "resources": {"requests": {"storage": "1Gi"}}}


def test_what_was_backed_up_is_learned_already_after_a_restore(cluster: Cluster, tmp_path: Path) -> None:
    """The CronJob's job copies the folder in use; the claim is lost; a new one begins with the copy."""
    cluster.namespace("copied")
    cluster.volume("copies", 10001)
    metadata = {"name": "copies", "namespace": "copied"}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": CLAIM | {"volumeName": "copies"},
    }
    cluster.apply(claim)
    cluster.volume("copied", 10001)
    backup = {"enabled": True, "existingClaim": "copies"}
    release = Release(cluster, "copied", tmp_path, VALUES | {"backup": backup})
    release.install()
    release.begin()
    release.told("before the copy")
    release.everything_once()
    place = ("-n", "copied")
    cluster.kubectl(*place, "create", "job", "--from=cronjob/spam-backup", "now")
    cluster.kubectl(*place, "wait", "--for=condition=Complete", "job/now", "--timeout=5m")
    print(cluster.kubectl(*place, "logs", "job/now").strip())
    release.helm("uninstall", "--wait", "--timeout", "5m")
    cluster.kubectl(*place, "delete", "pvc", "state-spam-0", "--wait")
    cluster.volume("new", 10001)
    release.install(backup=backup | {"restore": "latest"})
    release.everything_once()
    release.told("after the restore")
    release.everything_once()
    cluster.forget("copied")
