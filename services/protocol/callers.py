"""Who is taken for a caller on this machine, by one rule for both protocols, and what our own front says of a request.

A caller on this machine comes by its loopback, asks for a host that can only be this machine, and has no header by which a
proxy or a web page shows itself. The host matters since a web page may let its own name lead to 127.0.0.1 (DNS rebinding). A
browser on this machine then asks us for that page, by loopback, and names it. What a proxy hides of all this is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

FRONT_PEER = b"x-millrace-peer"  # the address that a request came to the front from
FRONT_HOST = b"x-millrace-host"  # the request's Host or :authority, where it has one
FRONT_ID = b"x-millrace-id"  # a uuid, the same in each of the front's tries to have a request answered
ENDING = b"x-millrace-ending"  # by which a replica tells the front that it is about to end
HOST = b"host"
PASSED_ON = frozenset(  # headers by which a proxy says for whom it asks, or that it is one
    b"forwarded x-real-ip via cf-connecting-ip true-client-ip fly-client-ip".split()
)
FAMILIES = (b"x-forwarded-", b"x-envoy-")  # the same, by how they begin
PAGES = frozenset({b"origin", b"sec-fetch-site"})  # a web page asks, not this machine's user, whatever machine it is shown on

_OWN_NAME = re.compile(rb"(?:localhost|\[::1\]|(127(?:\.\d{1,3}){3}))(?::\d*)?", re.IGNORECASE)


def remote_because(headers: Iterable[tuple[bytes, bytes]], connected_here: bool | None) -> str:
    """Why a caller is not taken for one on this machine, as the rest of a sentence; empty where it is.

    ``headers`` are those of an HTTP request or the metadata of a gRPC call, names in lower case. ``connected_here`` says
    whether its connection comes from this machine; None where only our front connects, so that the front's headers say it.

    >>> remote_because([(b"host", b"localhost:8000")], True), remote_because([(b"x-millrace-peer", b"::1")], None)
    ('', '')
    """
    shown, host_header = list(headers), HOST
    if connected_here is None:
        connected_here, host_header = _front_says_here(shown), FRONT_HOST
    if not connected_here:
        return "comes from another address"
    for name, value in shown:
        if name in PASSED_ON or name in PAGES or name.startswith(FAMILIES):
            return f"has the header {name.decode()}, which a proxy or a web page adds"
        if name == host_header and not is_own_name(value):
            host = value[:80].decode("latin-1")
            return f"asks for the host {host!r}, which is none of localhost, 127.0.0.0/8 and [::1]"
    return ""


def _front_says_here(headers: list[tuple[bytes, bytes]]) -> bool:
    peers = [value for name, value in headers if name == FRONT_PEER]
    return len(peers) == 1 and is_loopback(peers[0].decode("latin-1"))


def front_id(headers: Mapping[bytes, bytes]) -> str:
    """What rows are named after whose caller named neither them nor the request: the front's id in hex digits, or nothing.

    >>> front_id({b"x-millrace-id": b"0a8eb2ec-36ac-4d1d-b9a1-4c8e0e3b7c55"})
    '0a8eb2ec36ac4d1db9a14c8e0e3b7c55'
    """
    return headers.get(FRONT_ID, b"").decode("latin-1").replace("-", "")


def is_own_name(host: bytes) -> bool:
    """Whether a Host, with any port, can only mean this machine: localhost, 127.0.0.0/8 or [::1].

    >>> is_own_name(b"localhost:8000"), is_own_name(b"127.3.2.1"), is_own_name(b"[::1]:80"), is_own_name(b"evil.example")
    (True, True, True, False)
    """
    match = _OWN_NAME.fullmatch(host)
    return match is not None and (match[1] is None or is_loopback(match[1].decode()))


@lru_cache(1024)  # the same few callers ask again and again
def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own loopback, also where it is written as IPv4 within IPv6.

    >>> is_loopback("127.0.0.1"), is_loopback("::ffff:127.0.0.1"), is_loopback("::1"), is_loopback("10.0.0.9"), is_loopback("?")
    (True, True, True, False, False)
    """
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
