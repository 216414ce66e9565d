"""Each path has its methods: others are 405 with `Allow`, OPTIONS says which there are, HEAD is GET without a body."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from pipelines import TIMEOUT_S
from served_bundles import app, ask, numbers_bundle

APP = app(numbers_bundle(), token="s3cret")
TOKEN = {"Authorization": "Bearer s3cret"}
READ, WRITE = "GET, HEAD, OPTIONS", "POST, OPTIONS"
MODEL = "/v2/models/digits"
PATHS = dict.fromkeys(["/readyz", "/v2", "/v2/health/live", "/v2/health/ready", MODEL, f"{MODEL}/versions/main.41"], READ)
PATHS |= {f"{start}/{verb}": READ for start in (MODEL, f"{MODEL}/versions/main.41") for verb in ("ready", "stats", "status")}
PATHS |= {f"{start}/{verb}": WRITE for start in (MODEL, f"{MODEL}/versions/main.41") for verb in ("infer", "labels")}
ALL = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", "GE"]


@pytest.mark.parametrize("path", PATHS)
def test_a_method_that_a_path_has_not_is_405_with_those_that_it_has(path: str) -> None:
    """In `Allow` and in words, to anybody: the page says as much. None of it is said of what is not there."""
    allowed = PATHS[path].split(", ")
    for method in ALL:
        heard = ask(APP, method, path, b"{}", TOKEN)
        if method not in allowed:
            assert (heard.status, heard.headers["allow"]) == (405, PATHS[path])
            assert heard.json == {"error": f"{method}: {path} has {PATHS[path]}."}
        elif method != "OPTIONS":
            assert heard.status != 405 and "allow" not in heard.headers
    assert ask(APP, "PUT", path).status == 405 and ask(APP, "PUT", path.replace("digits", "nobody")).status == 405


@pytest.mark.parametrize("path", PATHS)
def test_options_says_which_methods_there_are(path: str) -> None:
    """204 has no body, no length and no type; a browser's preflight carries no token."""
    heard = ask(APP, "OPTIONS", path, client="10.0.0.9")
    assert (heard.status, heard.headers, heard.body) == (204, {"allow": PATHS[path]}, b"")


@pytest.mark.parametrize("path", ["/", "/v2/x", "/v2/health", f"{MODEL}/stop", f"{MODEL}/versions", "/v2/models/a/b/c/d/e"])
def test_what_is_not_there_is_404_by_any_method(path: str) -> None:
    """It has none to allow."""
    for method in ALL:
        heard = ask(APP, method, path, b"", TOKEN)
        assert heard.status == 404 and "allow" not in heard.headers


@contextmanager
def listening() -> Iterator[http.client.HTTPConnection]:
    """A connection to a real server on the application."""
    server = uvicorn.Server(uvicorn.Config(APP, port=0, lifespan="off", log_config=None, access_log=False))
    ready = threading.Event()

    async def serve() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        ready.set()
        await serving

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(TIMEOUT_S)
        connection = http.client.HTTPConnection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1], timeout=TIMEOUT_S)
        yield connection
        connection.close()
    finally:
        server.should_exit = True
        thread.join()


def test_head_is_get_without_its_body_on_a_real_server() -> None:
    """The same headers, length included; the connection goes on, after 204 and 405 too."""
    with listening() as connection:
        said = {}
        for method in ("GET", "HEAD", "OPTIONS", "TRACE", "GET"):
            connection.request(method, MODEL, headers=TOKEN)
            answer = connection.getresponse()
            body = answer.read()
            said[method] = (answer.status, answer.headers["content-length"], len(body))
        length = said["GET"][2]
        assert said["GET"] == (200, str(length), length) and length > 100
        assert said["HEAD"] == (200, str(length), 0) and said["OPTIONS"] == (204, None, 0)
        assert said["TRACE"][0] == 405
