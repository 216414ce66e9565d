"""A broker that is spoken to over TLS alone, by clients that show a certificate and say a password."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from either_log import KAFKA, swept
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion
from pipelines import PIPELINE, json_lines, lacks, millrace, pipeline_in

from millrace.services.demo.broker import Broker
from millrace.services.serving.ports import free_port
from millrace.streams.errors import StorageError

pytestmark = KAFKA
ROOT = Path(__file__).resolve().parents[3]
SECRETS = {"MILLRACE_KAFKA_PASSWORD": "wise-owl", "MILLRACE_KAFKA_SSL_PASSWORD": "old-moth"}
RSA = ["-newkey", "rsa:2048"]
JAAS = "org.apache.kafka.common.security"
LISTENER = f"""
ssl.keystore.type=PEM
ssl.keystore.location={{keys}}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={{keys}}/ca.pem
listener.name.secured.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.secured.plain.sasl.jaas.config={JAAS}.plain.PlainLoginModule required user_millrace="wise-owl";
listener.name.secured.scram-sha-512.sasl.jaas.config={JAAS}.scram.ScramLoginModule required;
"""


def openssl(keys: Path, *words: str) -> None:
    """Run it there."""
    subprocess.run(["openssl", *words], cwd=keys, check=True, capture_output=True)


def authority(keys: Path, name: str) -> None:
    """A certificate that vouches for itself, in NAME.pem, and its key."""
    openssl(keys, "req", "-x509", *RSA, "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")


def certified(keys: Path, name: str, *key: str) -> None:
    """A certificate of 127.0.0.1 by ``ca``, in NAME.crt, and its key."""
    openssl(keys, "req", *RSA, *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    (keys / "place").write_text("subjectAltName=IP:127.0.0.1\n", encoding="utf-8")
    by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "place"]
    openssl(keys, "x509", "-req", "-in", f"{name}.csr", *by, "-out", f"{name}.crt")


@pytest.fixture(scope="module")
def secured(tmp_path_factory) -> Iterator[tuple[Path, int]]:
    """The folder of the keys, and the port of a broker that goes by them."""
    if shutil.which("openssl") is None:
        lacks("there is no openssl here to make certificates with")
    keys, home, port = tmp_path_factory.mktemp("keys"), os.environ.get("KAFKA_HOME"), free_port()
    for name in ("ca", "stranger"):
        authority(keys, name)
    certified(keys, "broker", "-nodes")
    certified(keys, "client", "-passout", "pass:old-moth")
    (keys / "broker.pem").write_text("".join((keys / f"broker.{end}").read_text() for end in ("key", "crt")))
    try:
        broker = Broker(keys / "broker", Path(home) / "libs" if home else ROOT / ".kafka" / "jars")
    except StorageError as error:
        lacks(f"no Kafka: {error}")
    properties = broker.folder / "server.properties"
    text = properties.read_text(encoding="utf-8").replace("listeners=", f"listeners=SECURED://127.0.0.1:{port},")
    text = text.replace("map=", "map=SECURED:SASL_SSL,")
    properties.write_text(text + LISTENER.format(keys=keys), encoding="utf-8")
    broker.start()
    with swept():
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
        user = UserScramCredentialUpsertion("millrace", ScramMechanism.SCRAM_SHA_512, b"wise-owl", 4096)
        admin.alter_user_scram_credentials([user])
        admin.close()
        yield keys, port
    broker.stop()


def tables(keys: Path, port: int, mechanism: str = "SCRAM-SHA-512", ca: str = "ca.pem") -> str:
    """What puts a pipeline file's log there; relative paths are of the folder that a command runs in."""
    kafka = {"bootstrap": f"127.0.0.1:{port}", "security_protocol": "SASL_SSL", "patience_s": 10.0}
    kafka |= {"ssl_cafile": str(keys / ca), "ssl_certfile": str(keys / "client.crt"), "ssl_keyfile": str(keys / "client.key")}
    kafka |= {"sasl_mechanism": mechanism, "sasl_username": "millrace"}
    inline = ", ".join(f"{name} = {json.dumps(value)}" for name, value in kafka.items())
    return f'\n[log]\nkind = "kafka"\nkafka = {{ {inline} }}\n'


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_pipeline_sends_learns_and_proves_over_tls_with_passwords_from_the_environment(
    secured: tuple[Path, int], tmp_path: Path, mechanism: str
) -> None:
    """Every process of it, with a certificate of its own whose key has a password."""
    text = PIPELINE.replace('"digits"', f'"{mechanism.lower()}"') + tables(*secured, mechanism)
    pipeline_in(tmp_path, rows=60, text=text)
    for verb, *words in (["send", "rows.jsonl"], ["run"], ["verify", "--output", "json"]):
        done = millrace(verb, "digits.toml", *words, cwd=tmp_path, env=SECRETS)
        assert done.returncode == 0, done.stderr
        assert not any(secret in done.stdout + done.stderr for secret in SECRETS.values())
    (proof,) = json_lines(done.stdout)
    assert (proof["records"], proof["findings"]) == (60, 0)


@pytest.mark.parametrize(
    ("wrong", "ca", "says"),
    [
        ({}, "stranger.pem", "not trusted .unable to get local issuer.*look at log.kafka.ssl_cafile"),
        ({}, "nowhere.pem", "log.kafka.ssl_cafile = '.*nowhere.pem': there is no such file"),
        ({"MILLRACE_KAFKA_PASSWORD": "sly-fox"}, "ca.pem", "does not let us in: .*the password in MILLRACE_KAFKA_PASSWORD"),
        ({"MILLRACE_KAFKA_SSL_PASSWORD": "sly-fox"}, "ca.pem", "does not let us in: .*MILLRACE_KAFKA_SSL_PASSWORD"),
        ({"MILLRACE_KAFKA_SSL_PASSWORD": ""}, "ca.pem", "does not let us in: .*MILLRACE_KAFKA_SSL_PASSWORD"),
    ],
)
def test_what_keeps_it_from_connecting_is_said_with_what_to_look_at_and_no_password(
    secured: tuple[Path, int], tmp_path: Path, wrong: dict[str, str], ca: str, says: str
) -> None:
    """In one line, though the client itself says no more than that it could not."""
    pipeline_in(tmp_path, rows=5, text=PIPELINE + tables(*secured, ca=ca).replace("10.0", "3.0"))
    done = millrace("send", "digits.toml", "rows.jsonl", cwd=tmp_path, env=SECRETS | wrong)
    assert done.returncode in (1, 2) and re.search(says, done.stderr.splitlines()[-1]), done.stderr
    assert not any(word in done.stdout + done.stderr for word in ("sly-fox", "wise-owl", "old-moth"))
