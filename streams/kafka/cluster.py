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
    """Which Kafka cluster, and how to connect. Passwords come from the environment alone."""

    bootstrap: str = ""  # one or more brokers as host:port, with commas between
    replication: int = 0  # >= 0, replicas of topics made here; above 1 journals and ledger must have them; 0: the broker's own
    patience_s: float = 30.0  # > 0, seconds that a broker may take to answer before it is an error
    compression: Compression = "none"  # of the records that are appended
    security_protocol: Protocol = "PLAINTEXT"  # how brokers are connected to
    ssl_cafile: str = ""  # file of the certificates that brokers are trusted by; empty: the machine's own
    ssl_certfile: str = ""  # file of this client's certificate
    ssl_keyfile: str = ""  # file of its private key
    ssl_check_hostname: bool = True  # whether a broker's certificate must name its host
    sasl_mechanism: Mechanism = "SCRAM-SHA-512"  # how this client proves who it is, where the protocol has SASL
    sasl_username: str = ""  # as whom it does; the password is MILLRACE_KAFKA_PASSWORD in the environment

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
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
        """Raises: ConfigError naming a file that is missing; the client's own error names none."""
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
    settings: dict[str, Any] = {"security_protocol": cluster.security_protocol}
    if cluster.security_protocol.endswith("SSL"):
        files = {name: getattr(cluster, name) or None for name in FILES}
        settings |= files | {"ssl_check_hostname": cluster.ssl_check_hostname, "ssl_password": secrets.ssl_password}
    if cluster.security_protocol.startswith("SASL"):
        settings |= {"sasl_mechanism": cluster.sasl_mechanism, "sasl_plain_username": cluster.sasl_username}
        settings |= {"sasl_plain_password": secrets.sasl_password}
    return settings
