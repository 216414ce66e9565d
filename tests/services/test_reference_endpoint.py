"""What the page on HTTP and gRPC says, asked of the server: routes, calls, scopes, keys, limits."""

from __future__ import annotations

import inspect
import re

from reference_pages import TEXTS, limits, lines_of
from served_bundles import NUMBERS, ask, infer, numbers_bundle, tensor

from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.grpc import RPCS, SERVICES
from millrace.services.endpoint.http import LENGTH, HttpApp
from millrace.services.protocol import inference_pb2, labels_pb2
from millrace.services.protocol.access import LABEL, PREDICT, access
from millrace.services.protocol.callers import PAGES, PASSED_ON
from millrace.services.protocol.cells import DTYPES, Tensor
from millrace.services.protocol.labels import PRODUCER
from millrace.services.protocol.tensors import Inference, Wanted
from millrace.streams.labels.served import LateLabel


def answered(to: HttpApp, method: str, path: str) -> bool:
    """Whether there is something at a path by this method, whatever it answers."""
    return ask(to, method, path).status not in (404, 405)


def test_the_routes_on_the_page_are_those_that_answer() -> None:
    """Every path that can be made of the words in the server's source is asked; the page has those that answer alone."""
    source = inspect.getsource(inspect.getmodule(HttpApp))
    words = sorted(set(re.findall(r'"([a-z0-9]+)"', source)) | {"other"})
    here = HttpApp(Endpoint("digits", NUMBERS, numbers_bundle))
    version = numbers_bundle().identity.name
    models = ["/v2/models/digits", f"/v2/models/digits/versions/{version}"]
    paths = ["/v2", *models, *(f"{start}/{word}" for start in models for word in words)]
    paths += (
        [f"/{word}" for word in words]
        + [f"/v2/{word}" for word in words]
        + [f"/v2/{word}/{two}" for word in words if word != "models" for two in words]
    )
    routes = {(method, path) for method in ("GET", "POST") for path in paths if answered(here, method, path)}
    assert routes == {
        (method, path.replace("[/versions/VERSION]", between).replace("NAME", "digits"))
        for method, path, *_ in lines_of("http-grpc.md", "method", "path", "scope", "answers")
        for between in (("", f"/versions/{version}") if "VERSION" in path else ("",))
    }


def test_a_route_has_the_scope_that_the_page_says() -> None:
    """Who shows no token is let in where it says "open", and a token for the other scope is refused elsewhere."""
    tokens = {"p": frozenset({PREDICT}), "l": frozenset({LABEL})}
    closed = HttpApp(Endpoint("digits", NUMBERS, numbers_bundle, access(tokens, local_is_open=False)))
    for method, path, scope, _ in lines_of("http-grpc.md", "method", "path", "scope", "answers"):
        at = path.replace("[/versions/VERSION]", "").replace("NAME", "digits")
        shown = [ask(closed, method, at, headers={"authorization": f"Bearer {token}"}).status for token in ("p", "l")]
        expected = {"open": {}, PREDICT: {1: 403}, LABEL: {0: 403}}[scope]
        assert {at: status for at, status in enumerate(shown) if status == 403} == expected, path
        assert (ask(closed, method, at).status == 401) == (scope != "open"), path


def test_the_calls_on_the_page_are_those_of_the_services() -> None:
    """In the .proto files, in what is registered with a server, and on the page; each with its scope."""
    scopes = {
        (service, call): scope for service, call, scope, _ in lines_of("http-grpc.md", "service", "call", "scope", "answers")
    }
    assert set(scopes) == {(service, call) for service, calls in SERVICES.items() for call in calls}
    assert set(scopes) >= {
        (service.full_name, call.name)
        for file in (inference_pb2.DESCRIPTOR, labels_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for call in service.methods
    }
    assert {call: scope for (_, call), scope in scopes.items() if call != "Watch"} == {
        call: rpc.scope or "open" for call, rpc in RPCS.items()
    }


def test_the_keys_of_a_request_and_of_a_label_are_on_the_page() -> None:
    """Each key that is read has its line."""
    page = TEXTS["http-grpc.md"]
    names = [f"inputs[].{key}" for key in Tensor.__struct_fields__] + list(Inference.__struct_fields__)
    names += [f"outputs[].{key}" for key in Wanted.__struct_fields__ if key != "name"]
    names += list(LateLabel.__struct_fields__)
    assert [name for name in names if f"\n| `{name}` |" not in page] == []


def test_the_parameters_of_an_answer_are_on_the_page() -> None:
    """Each that an answer of classes, far outside what was learned, has over HTTP."""
    far = {"inputs": [tensor("x", "FP64", [1, 3], [1e90, 0.0, 0.0])]}
    told = infer(HttpApp(Endpoint("digits", NUMBERS, numbers_bundle)), far).json["parameters"]
    assert {"classes", "branch", "staleness_ms"} <= set(told)
    page = TEXTS["http-grpc.md"]
    assert [name for name in {*told, "far_out", "version", "state_age_ms"} if f"\n| `parameters.{name}` |" not in page] == []


def test_every_limit_says_of_what_it_is() -> None:
    """In the comment behind it, from which the page is made."""
    assert [
        f"{name}: write behind it of what it is a limit, then run `make reference`" for name, _, told in limits() if not told
    ] == []


def test_the_headers_and_datatypes_on_the_page_are_those_that_are_read() -> None:
    """Each header that the server's source names in bytes, and each datatype of a number."""
    source = inspect.getsource(inspect.getmodule(HttpApp))
    headers = {name for name in re.findall(r'b"([a-z-]{6,})"', source) if name != "identity"}
    headers |= {name.decode() for name in PASSED_ON | PAGES}
    page = TEXTS["http-grpc.md"]
    assert {"authorization", "x-real-ip", LENGTH.decode()} <= headers
    assert sorted(name for name in {*headers, PRODUCER.decode(), *DTYPES} if f"`{name}`" not in page) == []
