"""The life of a release in a namespace with Pod Security `restricted`; the tests go on from each other, in this order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from memory import processes_of, texts_in_memory
from one_node import Cluster, until
from releases import VALUES, Release, installed

pytestmark = pytest.mark.cluster
PASSWORDS = {"kafka": {"password": "a-password-of-kafka"}, "mlflow": {"MLFLOW_TRACKING_TOKEN": "a-token-of-mlflow"}}


@pytest.fixture(scope="module")
def release(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """One whose pod is given every kind of secret."""
    cluster.namespace("release")
    for name, data in PASSWORDS.items():
        cluster.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "release"}, "stringData": data}
        )
    secrets = {name: {"existingSecret": name} for name in PASSWORDS}
    with installed(cluster, "release", tmp_path_factory.mktemp("release"), VALUES | secrets) as release:
        yield release


def test_it_is_ready_before_it_has_learned_anything(release: Release) -> None:
    """`helm install --wait` ends, and the Service leads to where the first labels go."""
    assert release.ready(), release.described()
    status, answer = release.endpoint().ask("too early", 1.0)
    assert status == 503 and "nothing to answer from" in str(answer)
    release.begin()


def test_process_1_is_ours_by_number_on_a_root_that_cannot_be_written(release: Release) -> None:
    """No shell above it, no name for its user, nothing to write but the three volumes."""
    words = release.exec("cat", "/proc/1/cmdline").stdout.split("\0")
    assert words[1].endswith("/millrace") and words[2] == "up", words
    assert release.exec("id", "-u").stdout.strip() == "10001"
    for place, code in (("/opt/millrace/x", 1), ("/x", 1), ("/tmp/x", 0), ("/dev/shm/x", 0), ("/var/lib/millrace/x", 0)):
        done = release.exec("python3", "-c", f"open({place!r}, 'w').close()")
        assert done.returncode == code, done.stderr
    assert release.exec("rm", "/tmp/x", "/dev/shm/x", "/var/lib/millrace/x").returncode == 0


def test_helm_test_passes(release: Release) -> None:
    """A prediction and a label over HTTP and gRPC with the Secret's token, and the metric that counted them."""
    assert "Phase:          Succeeded" in release.helm("test", "--timeout", "5m")


def test_a_prediction_and_its_label_through_the_service(release: Release) -> None:
    """A row that is asked about and labelled is learned once."""
    release.told("mail 1")
    release.everything_once()


def test_a_caller_without_the_token_is_refused(release: Release) -> None:
    """The pod listens on all addresses, so nobody is taken for local."""
    assert replace(release.endpoint(), token="wrong").ask("x", 1.0)[0] == 401


def secrets_of(release: Release) -> list[str]:
    """Its token, and the passwords that it is given."""
    return [release.token(), *(text for data in PASSWORDS.values() for text in data.values())]


def files_with(release: Release, text: str) -> list[str]:
    """Those of the pod that have it, Ray's own among them. A search that could not read everything is repeated."""
    searches = []

    def searched() -> bool:
        searches.append(release.exec("grep", "-rlF", "-e", text, "/tmp", "/var/lib/millrace", "/dev/shm"))
        return searches[-1].returncode in (0, 1)

    until(searched, f"a search of the pod's files: {searches[-1:]}")
    return searches[-1].stdout.splitlines()


def test_no_secret_is_told(release: Release) -> None:
    """Each stands in its Secret, and in no log, event or object, nor in a file of the pod, Ray's among them.

    Where one is told on purpose, the search finds it; `forget` makes the same search in every namespace of these tests.
    """
    secrets, cluster = secrets_of(release), release.cluster
    assert set(secrets) <= cluster.secrets(release.namespace)
    logs = cluster.logs(release.namespace)
    assert {"log spam-0 millrace", "log spam-0 check", "log spam-test ask"} <= set(logs) and all(logs.values())
    assert cluster.told_secrets(release.namespace) == []
    environment = release.exec("env").stdout
    for secret in secrets:
        teller = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "teller", "namespace": release.namespace}}
        cluster.apply(teller | {"data": {"told": f"its {secret}"}})
        assert cluster.told_secrets(release.namespace) == ["ConfigMap teller"]
        cluster.kubectl("-n", release.namespace, "delete", "configmap", "teller")
        assert secret in environment or secret == release.token(), "else the pod has none to tell"
        assert release.exec("sh", "-c", f"echo {secret} > /tmp/told").returncode == 0
        assert files_with(release, secret) == ["/tmp/told"]
        assert release.exec("rm", "/tmp/told").returncode == 0


def test_no_secret_is_in_rays_state(release: Release) -> None:
    """The memory of the pod's GCS, which holds what Ray knows of every actor, has names of ours and none of the secrets."""
    secrets = secrets_of(release)
    (gcs,) = processes_of(release.pod()["metadata"]["uid"], "gcs_server")
    assert texts_in_memory(gcs, ["SERVE_CONTROLLER_ACTOR", "millrace", *secrets]) == {"SERVE_CONTROLLER_ACTOR", "millrace"}


def test_what_kubernetes_does_not_change_is_said_with_the_way_on(release: Release) -> None:
    """The pod stays through it: the StatefulSet alone is taken away, and the upgrade makes it anew around the pod."""
    before = release.pod()["metadata"]["uid"]
    persistence = VALUES["persistence"] | {"size": "9Gi"}
    with pytest.raises(AssertionError, match="persistence.size: StatefulSet spam has 8Gi, and Kubernetes does not") as refused:
        release.install(persistence=persistence)
    (command,) = set(re.findall(r"upgrade then: kubectl (.*? --cascade=orphan)", str(refused.value)))
    release.cluster.kubectl(*command.split())
    release.install(persistence=persistence)
    (claim,) = release.got("statefulset", "spam")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "9Gi" and release.pod()["metadata"]["uid"] == before
    release.values = release.values | {"persistence": persistence}


def test_a_pod_that_pod_security_refuses_is_not_made(release: Release) -> None:
    """The namespace really is restricted: without our security context the same pod is refused there."""
    spec = {"containers": [{"name": "x", "image": f"{VALUES['image']['repository']}:test", "imagePullPolicy": "Never"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain", "namespace": release.namespace}, "spec": spec}
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        release.cluster.apply(pod)


def test_uninstalled_and_installed_again_it_knows_what_it_knew(release: Release) -> None:
    """The claim stays, and is taken again."""
    release.helm("uninstall", "--wait", "--timeout", "5m")
    (claim,) = release.got("pvc")["items"]
    assert claim["metadata"]["name"] == "state-spam-0" and claim["status"]["phase"] == "Bound"
    release.install()
    release.told("again")
    release.everything_once()
