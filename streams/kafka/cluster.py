"""Which Kafka cluster a pipeline's log, journals and ledger lie in. Nothing here needs a client."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from millrace.learners.errors import ConfigError

Compression = Literal["none", "gzip", "lz4", "snappy", "zstd"]
Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where it is, and how it is gone about. Passwords are not in here: see ``Secrets``."""

    bootstrap: str = ""  # one or more brokers as host:port, with commas between
    replication: int = 0  # of topics made here; above 1 journals and ledger must keep to it; 0: the cluster's own default
    patience_s: float = 30.0  # that a broker may not answer before it is an error, above 0
    compression: Compression = "none"  # of what is appended
    security_protocol: Protocol = "PLAINTEXT"
    ssl_cafile: str = ""  # of the certificates that brokers are trusted by; empty: the machine's own
    ssl_certfile: str = ""  # of this client
    ssl_keyfile: str = ""  # its private key
    ssl_check_hostname: bool = True
    sasl_mechanism: Mechanism = "SCRAM-SHA-512"  # where the protocol is one with SASL
    sasl_username: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.replication < 0 or not 0.0 < self.patience_s < float("inf"):
            raise ValueError(f"replication = {self.replication}, patience_s = {self.patience_s}: at least 0, and above 0")
        for place in self.brokers:
            host, colon, port = place.rpartition(":")
            if not (host and colon and port.isdigit()):
                raise ValueError(f"bootstrap = {self.bootstrap!r}: must be host:port, with commas between several")

    @property
    def brokers(self) -> list[str]:
        """Those to ask first."""
        return [place.strip() for place in self.bootstrap.split(",")] if self.bootstrap else []

    def check_files(self) -> None:
        """Raises: ConfigError for one that is not there, of which the client says no more than that something is not."""
        for name in FILES:
            if (path := getattr(self, name)) and not Path(path).is_file():
                raise ConfigError(f"log.kafka.{name} = {path!r}: there is no such file.")


@dataclass(frozen=True, slots=True)
class Secrets:
    """What must be written down nowhere: from the environment of each process that connects."""

    sasl_password: str = field(default="", repr=False)
    ssl_password: str = field(default="", repr=False)  # of the private key's file


def security(cluster: Cluster, secrets: Secrets) -> dict[str, Any]:
    """The security settings in the client's words; those that are not said are left to it. A key's password is always said, or
    OpenSSL would ask the terminal for it.

    >>> security(Cluster("a:9092"), Secrets())
    {'security_protocol': 'PLAINTEXT'}
    """
    said: dict[str, Any] = {"security_protocol": cluster.security_protocol}
    if cluster.security_protocol.endswith("SSL"):
        files = {name: getattr(cluster, name) or None for name in FILES}
        said |= files | {"ssl_check_hostname": cluster.ssl_check_hostname, "ssl_password": secrets.ssl_password}
    if cluster.security_protocol.startswith("SASL"):
        said |= {"sasl_mechanism": cluster.sasl_mechanism, "sasl_plain_username": cluster.sasl_username}
        said |= {"sasl_plain_password": secrets.sasl_password}
    return said
