"""Why a cluster cannot be reached. Of all that may be wrong the client raises no more than that it was in vain."""

from __future__ import annotations

import socket
import ssl

from millrace.streams.kafka.cluster import Cluster

PROBE_S = 2.0  # for one look


def look_at(cluster: Cluster) -> str:
    """Connect to its first broker, without a word of Kafka's own: what was seen, and what to look at in the pipeline file.

    A broker that refuses a password closes the connection, as one does that is spoken to in another protocol. kafka-python
    3.0.12 drops what came with the end of a connection, and that is the broker's answer.
    """
    place, _, port = cluster.brokers[0].rpartition(":")
    host = place.strip("[]")
    try:
        with socket.create_connection((host, int(port)), PROBE_S) as plain:
            if cluster.security_protocol.endswith("SSL"):
                _trusting(cluster).wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return f"It is not trusted ({error.verify_message}): look at log.kafka.ssl_cafile and ssl_check_hostname."
    except ssl.SSLError as error:
        return f"It does not speak TLS with us ({error.reason}): look at log.kafka.security_protocol and ssl_cafile."
    except OSError as error:
        return f"{error.strerror or error}: look at its brokers, and at log.kafka.bootstrap."
    return f"It listens, and does not let us in: look at {_described_settings(cluster)}."


def _trusting(cluster: Cluster) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cluster.ssl_cafile or None)
    context.check_hostname = cluster.ssl_check_hostname
    return context


def _described_settings(cluster: Cluster) -> str:
    """What a client shows of itself, as it is set.

    >>> _described_settings(Cluster(security_protocol="SASL_SSL"))
    'log.kafka.security_protocol, sasl_mechanism, sasl_username and the password in MILLRACE_KAFKA_PASSWORD'
    """
    keys = "log.kafka.security_protocol"
    if cluster.ssl_keyfile:
        keys += ", ssl_certfile, ssl_keyfile and the password in MILLRACE_KAFKA_SSL_PASSWORD"
    if cluster.security_protocol.startswith("SASL"):
        keys += ", sasl_mechanism, sasl_username and the password in MILLRACE_KAFKA_PASSWORD"
    return keys
