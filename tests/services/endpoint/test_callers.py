"""Who is taken for a caller on this machine: every header, host and peer, on both protocols and in front of them or not.

Each refusal has a twin: the rule as it was, or the rule without that part, by which the same call is answered.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from grpc_calls import FakeCall
from served_bundles import Heard, ask, endpoint_of, numbers_bundle

from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.grpc import RPCS, GrpcApp
from millrace.services.endpoint.http import HttpApp
from millrace.services.protocol import callers
from millrace.services.protocol.access import SCOPES, access
from millrace.services.protocol.callers import remote_because

ENDPOINT = endpoint_of(numbers_bundle())
TOKEN = {"authorization": "Bearer s3cret"}
OLD_HEADERS = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", *callers.PAGES})
PROXY_HEADERS = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via", "cf-connecting-ip", "true-client-ip"]
OWN_HOSTS = [
    *("localhost", "localhost:8000", "LocalHost:80", "localhost:", "127.0.0.1", "127.0.0.1:8000"),
    *("127.0.0.2:9", "127.255.0.9", "[::1]", "[::1]:8000"),
]
OTHER_HOSTS = [
    *("evil.example", "evil.example:8000", "localhost.evil.example", "evil.example.localhost", "localhost.", "localhost:8000x"),
    *("127.0.0.1.evil.example", "127.0.0.1@evil.example", "evil.example@127.0.0.1", "127.0.0.999", "127.1", "128.0.0.1"),
    *("10.0.0.1:30000", "0.0.0.0", "[::]", "[::1", "::1", "[fe80::1]:8000", "", " localhost", "localhost, evil.example"),
    *("backend", "millrace.internal", "a" * 300, "0127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "[::1%lo]"),
]


@dataclass(frozen=True)
class Way:
    """A protocol, and whether it is asked by our own front."""

    protocol: str
    behind_front: bool

    def asked(self, headers: dict[str, str] | None = None, host: str | None = None, peer: str | None = "127.0.0.1") -> Answer:
        """What a call for metadata comes to, whose caller has this address and asks for this host."""
        shown = list((headers or {}).items())
        if self.behind_front:
            shown += [("x-millrace-peer", peer)] if peer is not None else []
            shown += [("x-millrace-host", host)] if host is not None else []
            peer = None
        elif self.protocol == "http" and host is not None:
            shown.append(("host", host))
        return answer(self, shown, peer)


@dataclass(frozen=True)
class Answer:
    """Whether a call was answered, and else why not."""

    given: bool
    why: str = ""
    status: Any = field(default=None, compare=False)


def answer(way: Way, shown: list[tuple[str, str]], address: str | None, endpoint: Endpoint = ENDPOINT) -> Answer:
    """Of a connection from an address, or over a Unix socket."""
    return (over_http if way.protocol == "http" else over_grpc)(way, shown, address, endpoint)


def over_http(way: Way, shown: list[tuple[str, str]], address: str | None, endpoint: Endpoint) -> Answer:
    """By a request without a network."""
    heard = requested(HttpApp(endpoint, way.behind_front), "/v2", shown, address)
    return Answer(heard.status == 200, heard.json.get("error", ""), heard.status)


def requested(to: HttpApp, path: str, shown: list[tuple[str, str]], address: str | None) -> Heard:
    """A GET whose headers may stand twice."""
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in shown]
    ends = {"client": address and (address, 50000), "server": ("127.0.0.1", 8000) if address else ("/run/0.sock", None)}
    asyncio.run(to({"type": "http", "method": "GET", "path": path, "headers": raw, **ends}, receive, send))
    return Heard(messages[0]["status"], {}, messages[1]["body"])


def over_grpc(way: Way, shown: list[tuple[str, str]], address: str | None, endpoint: Endpoint) -> Answer:
    """By a call without a network."""
    context = FakeCall(f"ipv4:{address}:5" if address else "unix:", tuple(shown))
    asyncio.run(GrpcApp(endpoint, way.behind_front).answer("ServerMetadata", b"", context))
    return Answer(context.code == "OK", context.details, context.code)


WAYS = [Way(protocol, behind_front) for protocol in ("http", "grpc") for behind_front in (False, True)]
SEES_HOST = [way for way in WAYS if way != Way("grpc", False)]  # gRPC's own server does not show the :authority
FRONTED = [way for way in WAYS if way.behind_front]
each_way = pytest.mark.parametrize("way", WAYS, ids=str)


def refused(got: Answer, why: str) -> bool:
    """Whether a token was asked for, with this reason."""
    return got.status in (401, "UNAUTHENTICATED") and "Bearer TOKEN" in got.why and why in got.why


@each_way
@pytest.mark.parametrize("header", PROXY_HEADERS)
def test_a_call_with_a_proxys_header_needs_a_token_whatever_the_header_says(
    header: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also empty, and beside a host of this machine; the twin looks at no header."""
    for value in ("127.0.0.1", "", "1.1 nginx"):
        assert refused(way.asked({header: value}, "localhost:8000"), f"has the header {header},")
        assert refused(way.asked({header: value}), f"has the header {header},")
    monkeypatch.setattr(callers, "PASSED_ON", frozenset())
    monkeypatch.setattr(callers, "FAMILIES", ())
    assert way.asked({header: "127.0.0.1"}, "localhost:8000").given


@each_way
@pytest.mark.parametrize("header", ["via", "x-forwarded-host", "cf-connecting-ip", "true-client-ip"])
def test_the_rule_as_it_was_let_these_through(header: str, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin that knows only the three headers of before answers whoever a proxy lets in."""
    monkeypatch.setattr(callers, "PASSED_ON", OLD_HEADERS)
    monkeypatch.setattr(callers, "FAMILIES", ())
    assert way.asked({header: "10.0.0.9"}, "localhost").given


@pytest.mark.parametrize("way", SEES_HOST, ids=str)
@pytest.mark.parametrize("host", OTHER_HOSTS, ids=lambda host: repr(host[:30]))
def test_a_call_for_another_host_needs_a_token(host: str, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a name that was made to lead here gets nothing; the twin looks at no host."""
    got = way.asked(host=host)
    assert refused(got, "asks for the host ") and repr(host[:80]) in got.why and len(got.why) < 400
    monkeypatch.setattr(callers, "is_own_name", lambda host: True)
    assert way.asked(host=host).given


@each_way
@pytest.mark.parametrize("host", [None, *OWN_HOSTS])
def test_a_call_for_this_machine_by_its_own_names_needs_none(host: str | None, way: Way) -> None:
    """With any port; and without a host, as HTTP/1.0 allows and browsers never do."""
    for peer in ("127.0.0.1", "127.0.0.7"):
        assert way.asked(host=host, peer=peer) == Answer(True)


@pytest.mark.parametrize("way", FRONTED, ids=str)
@pytest.mark.parametrize("peer", ["::1", "::ffff:127.0.0.1"])
def test_the_front_may_have_been_reached_over_ipv6(peer: str, way: Way) -> None:
    """Also where it writes IPv4 within IPv6."""
    assert way.asked(host="[::1]:8000", peer=peer).given


@each_way
def test_a_call_from_another_machine_needs_a_token_whatever_host_it_asks_for(way: Way) -> None:
    """The address decides first."""
    for host in (None, "localhost", "evil.example"):
        assert refused(way.asked(host=host, peer="10.0.0.9"), "comes from another address")


@pytest.mark.parametrize("way", FRONTED, ids=str)
@pytest.mark.parametrize("peer", [None, "", "unix", "localhost", "127.0.0.1:5", "127.0.0.1, 10.0.0.9", "10.0.0.9"])
def test_behind_the_front_only_the_peer_that_it_names_counts(
    peer: str | None, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None and nonsense are not this machine; the twin goes by the connection, and that is the front's for everybody."""
    assert refused(way.asked(host="localhost", peer=peer), "comes from another address")
    for module in ("http", "grpc"):
        monkeypatch.setattr(f"millrace.services.endpoint.{module}.remote_because", by_the_connection)
    assert way.asked(host="localhost", peer=peer).given


def by_the_connection(headers: Any, connected_here: bool | None) -> str:
    """Broken: a connection over a Unix socket is a caller on this machine."""
    return remote_because(headers, True if connected_here is None else connected_here)


@pytest.mark.parametrize("way", FRONTED, ids=str)
def test_a_second_peer_beside_the_fronts_counts_for_nobody(way: Way) -> None:
    """A front that failed to delete what the caller sent opens nothing."""
    for peers in (("127.0.0.1", "10.0.0.9"), ("10.0.0.9", "127.0.0.1")):
        assert refused(answer(way, [("x-millrace-peer", peer) for peer in peers], None), "comes from another address")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_without_a_front_nobody_gains_by_speaking_in_its_name(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its headers are not looked at, for better or worse; the twin believes them."""
    way, lies = Way(protocol, False), {"x-millrace-peer": "127.0.0.1", "x-millrace-host": "localhost"}
    assert refused(way.asked(lies, peer="10.0.0.9"), "comes from another address")
    assert way.asked({"x-millrace-peer": "10.0.0.9", "x-millrace-host": "evil.example"}, "localhost").given
    monkeypatch.setattr(f"millrace.services.endpoint.{protocol}.remote_because", by_the_headers)
    assert way.asked(lies, peer="10.0.0.9").given


def by_the_headers(headers: Any, connected_here: bool | None) -> str:
    """Broken: whoever sends the front's headers is believed."""
    return remote_because(headers, None)


@pytest.mark.parametrize("way", SEES_HOST, ids=str)
def test_of_two_hosts_both_must_be_this_machines(way: Way) -> None:
    """Whichever of them a proxy goes by."""
    name, peer = ("x-millrace-host", [("x-millrace-peer", "127.0.0.1")]) if way.behind_front else ("host", [])
    for hosts in (("localhost", "evil.example"), ("evil.example", "localhost")):
        shown = [*peer, *((name, host) for host in hosts)]
        assert refused(answer(way, shown, None if way.behind_front else "127.0.0.1"), "asks for the host 'evil.example'")


def test_a_call_from_the_very_address_it_is_made_to_passes_only_by_a_name_of_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """That address is a host like any other; the twin asks no further than the connection."""
    app, others = HttpApp(ENDPOINT), ("10.0.0.1:30000", "millrace.internal")
    assert ask(app, "GET", "/v2", client="10.0.0.1", headers={"Host": "localhost"}).status == 200
    assert [ask(app, "GET", "/v2", client="10.0.0.1", headers={"Host": host}).status for host in others] == [401, 401]
    monkeypatch.setattr(callers, "is_own_name", lambda host: True)
    assert [ask(app, "GET", "/v2", client="10.0.0.1", headers={"Host": host}).status for host in others] == [200, 200]


# What nginx makes of a request to `millrace.example.com` that it passes on, by its configuration: whether it can be told.
NGINX: list[tuple[str, str, dict[str, str], bool]] = [
    ("proxy_pass http://millrace; upstream millrace {...}", "millrace", {"connection": "close"}, True),
    ("proxy_set_header Host $host", "millrace.example.com", {"connection": "close"}, True),
    ("proxy_set_header X-Real-IP $remote_addr", "127.0.0.1:8000", {"x-real-ip": "203.0.113.5"}, True),
    ("proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for", "127.0.0.1:8000", {"x-forwarded-for": "203.0.113.5"}, True),
    ("proxy_pass http://127.0.0.1:8000", "127.0.0.1:8000", {"connection": "close"}, False),
]


@pytest.mark.parametrize("way", SEES_HOST, ids=str)
@pytest.mark.parametrize(("directive", "host", "headers", "told"), NGINX, ids=[case[0] for case in NGINX])
def test_what_a_proxy_on_this_machine_passes_on_needs_a_token_where_the_proxy_shows(
    directive: str, host: str, headers: dict[str, str], told: bool, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that rewrites the host to a loopback address and adds nothing is not recognised: behind a proxy, tokens."""
    assert way.asked(headers, host).given is not told
    peer = [("x-millrace-peer", "127.0.0.1"), ("x-millrace-host", host)] if way.behind_front else [("host", host)]
    address = None if way.behind_front else "127.0.0.1"
    assert not answer(way, [*peer, *headers.items()], address, guarded(open_here=False)).given
    monkeypatch.setattr(callers, "PASSED_ON", frozenset())
    monkeypatch.setattr(callers, "FAMILIES", ())
    monkeypatch.setattr(callers, "is_own_name", lambda host: True)
    assert way.asked(headers, host).given, "the twin that takes every call by loopback for this machine's"


def guarded(open_here: bool) -> Endpoint:
    """An endpoint with a token, open to this machine without it or not."""
    return Endpoint(ENDPOINT.name, ENDPOINT.schema, ENDPOINT.held, access({"s3cret": SCOPES}, open_here))


@each_way
def test_a_token_opens_to_everybody_whom_the_rule_keeps_out(way: Way) -> None:
    """And where everybody needs one, nobody is told why he is not of this machine."""
    peer = [("x-millrace-peer", "10.0.0.9"), ("x-millrace-host", "evil.example")]
    shown = [*(peer if way.behind_front else [("host", "evil.example")]), ("via", "1.1 nginx")]
    address = None if way.behind_front else "10.0.0.9"
    assert answer(way, [*shown, *TOKEN.items()], address, guarded(True)).given
    assert answer(way, [*shown, *TOKEN.items()], address, guarded(False)).given
    assert refused(answer(way, shown, address, guarded(True)), "Only a call from this machine needs none")
    assert "this machine" not in answer(way, shown, address, guarded(False)).why


@pytest.mark.parametrize("behind_front", [False, True])
def test_health_is_open_to_all(behind_front: bool) -> None:
    """From another machine, by another name, through a proxy, on both protocols; what is beside it is not."""
    shown = [("x-millrace-peer", "10.0.0.9"), ("x-millrace-host", "evil.example"), ("host", "evil.example"), ("via", "1.1 x")]
    app, status = HttpApp(ENDPOINT, behind_front), dict[str, int]()
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready"):
        status[path] = requested(app, path, shown, "10.0.0.9").status
    assert list(status.values()) == [200, 200, 401]
    codes = {name: code_of(name, shown, behind_front) for name in RPCS}
    assert {name for name, code in codes.items() if code != "UNAUTHENTICATED"} == {"ServerLive", "ServerReady", "Check"}
    assert codes["ServerLive"] == codes["ServerReady"] == codes["Check"] == "OK"


def code_of(name: str, shown: list[tuple[str, str]], behind_front: bool) -> str:
    """What a call from another machine ends with."""
    context = FakeCall("ipv4:10.0.0.9:5", tuple(shown))
    asyncio.run(GrpcApp(ENDPOINT, behind_front).answer(name, b"", context))
    return context.code


def test_what_is_said_of_a_host_is_safe_to_show() -> None:
    """Quoted, cut, and JSON whatever was sent."""
    host = "evil\x00\x1b[31m\"}'" + "z" * 9000
    heard = requested(HttpApp(ENDPOINT), "/v2", [("host", host)], "127.0.0.1")
    assert heard.status == 401 and set(json.loads(heard.body)) == {"error"} and len(heard.body) < 600
    assert not any(letter in heard.json["error"] for letter in "\x00\x1b")
