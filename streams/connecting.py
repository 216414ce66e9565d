"""Why a cluster cannot be reached. The client says so in its log alone: what it raises is that it was in vain.

Of a wrong password not even its log says more than that the broker hung up: kafka-python 3.0.12 drops what came with the end of
a connection, and that is the broker's answer.
"""

from __future__ import annotations

import logging

CLIENT = "kafka.net.manager"  # who says it
LATE = ("Timeout", "timed out")  # of an attempt that was cut short, which says the least
HINTS = (
    ("CERTIFICATE", "Let log.kafka.ssl_cafile name the certificates that its brokers are trusted by."),
    ("[SSL] PEM lib", "Look at log.kafka.ssl_certfile, ssl_keyfile and the password in MILLRACE_KAFKA_SSL_PASSWORD."),
    ("Handshake failed", "Look at log.kafka.security_protocol and ssl_certfile."),
    ("Sasl", "Look at log.kafka.sasl_username, sasl_mechanism and the password in MILLRACE_KAFKA_PASSWORD."),
    (
        "socket disconnected",
        "It may have gone down, or not like how it is spoken to: look at log.kafka.security_protocol, sasl_mechanism, "
        "sasl_username and the password in MILLRACE_KAFKA_PASSWORD.",
    ),
)


class LastWords(logging.Handler):
    """What the client said of the newest connection that failed, since one of this process succeeded."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        head, failed, rest = record.getMessage().partition(" failed: ")
        said = rest.rpartition(" (backoff")[0]
        if head.startswith("Bootstrap complete"):
            self.said = ""
        elif failed and head.startswith("Bootstrap ") and not (self.said and any(word in said for word in LATE)):
            self.said = said


_WORDS = LastWords()


def listen() -> None:
    """Hear the client out, and let nothing of it through to anyone else: what matters is raised, in our words."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    client = logging.getLogger(CLIENT)
    client.setLevel(logging.INFO)
    client.propagate = False
    client.addHandler(_WORDS)  # once, however often


def explained(said: str) -> tuple[str, str]:
    """What the client raised, with the cause where that is known, and what to look at.

    >>> explained("KafkaConnectionError: Handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED]")[1]
    'Let log.kafka.ssl_cafile name the certificates that its brokers are trusted by.'
    """
    if "Unable to bootstrap" in said and _WORDS.said:
        said = f"{said}, {_WORDS.said}"
    hints = (hint for word, hint in HINTS if word in said)
    return said, next(hints, "Look at log.kafka in the pipeline file.")
