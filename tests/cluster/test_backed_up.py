"""A back-up while it learns, and a release that begins with it after everything was lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from one_node import Cluster, output
from releases import ROWS, VALUES, Release

pytestmark = pytest.mark.cluster
CLAIM = {"accessModes": ["ReadWriteOnce"], "storageClassName": "bare", "resources": {"requests": {"storage": "1Gi"}}}


def as_noted(release: Release) -> str:
    """What the commands of the notes print, typed one after the other by whoever has rows."""
    (release.folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    programs = f"{release.cluster.folder / 'bin'}:{release.cluster.helm_binary.parent}:{os.environ['PATH']}"
    script = "\n".join(["set -exo pipefail", "trap 'kill $(jobs -p)' EXIT", *release.noted()])
    words = ["bash", "-c", f"cd {release.folder}\n{script}"]
    return output(words, release.cluster.env | {"PATH": programs})


def test_what_was_backed_up_is_learned_already_after_a_restore(cluster: Cluster, tmp_path: Path) -> None:
    """What the notes say is done as printed: rows, a question, `helm test`, a back-up of the folder in use.

    Then the claim is lost; a new one begins with the copy.
    """
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
    said = as_noted(release)
    print(said)
    assert len(release.noted()) == 9
    assert '"name":"spam"' in said and "metrics: counted" in said and "job.batch/spam-backup-now created" in said
    place = ("-n", "copied")
    cluster.kubectl(*place, "wait", "--for=condition=Complete", "job/spam-backup-now", "--timeout=5m")
    release.told("before the copy")
    release.everything_once()
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
