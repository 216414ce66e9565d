"""The Open Inference Protocol over gRPC: what clients send and get, health, and who may call."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_calls import FakeCall, answering, asked, call, length_prefixed, rows_of
from grpc_health.v1 import health_pb2
from pipelines import MIXED
from served_bundles import HERE, NUMBERS, app, endpoint_of, infer, mixed_parts, numbers_bundle, numbers_parts, tensor

from millrace.services.errors import MEANINGS
from millrace.services.pipeline.bundle import open_parts
from millrace.services.protocol import inference_pb2 as pb
from millrace.services.protocol import labels_pb2

pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")

ROOT = Path(__file__).resolve().parents[3]
BUNDLE = numbers_bundle()
X = np.array([[1.0, 2.0, 3.0], [-4.0, 0.5, 0.0]])
MIXED_BUNDLE = open_parts(mixed_parts(), MIXED)


def contents(name: str, datatype: str, shape: list[int], **values: list) -> pb.ModelInferRequest.InferInputTensor:
    """An input with typed contents."""
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape, contents=pb.InferTensorContents(**values)
    )


def scores_of(answer: pb.ModelInferResponse) -> bytes:
    """The bytes of the output `scores`."""
    assert (answer.outputs[0].name, answer.outputs[0].datatype) == ("scores", "FP64")
    return answer.raw_output_contents[0]


def test_raw_and_typed_tensors_give_the_bits_that_http_gives() -> None:
    """One tensor or one a field, any datatype that holds the numbers."""
    expected = BUNDLE.predict([X[:, :1], X[:, 1:]])
    over_http = infer(app(BUNDLE), {"inputs": [tensor("x", "FP64", [2, 3], X.tolist())]}).json
    whole = np.array([[1, 2, 3], [-4, 5, 0]])
    requests = [asked(rows_of(X)), asked(rows_of(X, "<f4", "FP32")), asked(rows_of(X, "<f2", "FP16"))]
    requests.append(asked(("b", "FP64", [2, 2], X[:, 1:].tobytes()), ("a", "FP32", [2], X[:, 0].astype("<f4").tobytes())))
    typed = [("FP64", "fp64_contents"), ("FP32", "fp32_contents")]
    requests += [
        pb.ModelInferRequest(model_name="digits", inputs=[contents("x", kind, [2, 3], **{name: X.ravel().tolist()})])
        for kind, name in typed
    ]
    for request in requests:
        context, answer = call(endpoint_of(BUNDLE), "ModelInfer", request)
        assert context.code == "OK" and scores_of(answer) == expected.scores.tobytes(), context.details
        assert answer.raw_output_contents[1] == length_prefixed(*expected.labels)
        assert np.frombuffer(scores_of(answer)).tolist() == over_http["outputs"][0]["data"]
    same = {scores_of(call(endpoint_of(BUNDLE), "ModelInfer", asked(rows_of(whole)))[1])}
    for kind, name in (("INT8", "int_contents"), ("INT32", "int_contents"), ("INT64", "int64_contents")):
        request = pb.ModelInferRequest(
            model_name="digits", inputs=[contents("x", kind, [2, 3], **{name: whole.ravel().tolist()})]
        )
        same.add(scores_of(call(endpoint_of(BUNDLE), "ModelInfer", request)[1]))
    assert len(same) == 1


def test_every_answer_names_its_state_and_its_rows_as_http_does() -> None:
    """Version, parameters, request id, and ids where they are asked for."""
    over_http = infer(app(BUNDLE), {"id": "r7", "inputs": [tensor("x", "FP64", [2, 3], X.tolist())]}).json
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name="id")]
    _, answer = call(endpoint_of(BUNDLE), "ModelInfer", asked(rows_of(X), id="r7", outputs=wanted))
    parameters = {name: getattr(value, str(value.WhichOneof("parameter_choice"))) for name, value in answer.parameters.items()}
    assert parameters.pop("staleness_ms") > 0 and over_http["parameters"].pop("staleness_ms") > 0
    assert over_http["parameters"].pop("classes") == '["up","down"]'  # with the scores, for which this call does not ask
    assert parameters == over_http["parameters"] == {"branch": HERE.branch, "epoch": HERE.epoch, "seq": HERE.seq}
    assert (answer.model_name, answer.model_version, answer.id) == ("digits", over_http["model_version"], "r7")
    assert [*answer.raw_output_contents] == [length_prefixed("r7/0", "r7/1")]
    own = asked(rows_of(X), ("id", "BYTES", [2], length_prefixed("ann", "bob")), outputs=wanted)
    assert call(endpoint_of(BUNDLE), "ModelInfer", own)[1].raw_output_contents[0] == length_prefixed("ann", "bob")
    assert call(endpoint_of(BUNDLE), "ModelInfer", asked(rows_of(X)))[1].id


def test_a_mixed_row_leaves_out_what_may_be_missing() -> None:
    """NaN or no tensor at all are the same."""
    row = [
        ("size", "FP64", [1], np.array([1.5]).tobytes()),
        ("at", "INT64", [1], np.array([104]).tobytes()),
        ("pixels", "FP64", [1, 3], np.array([0.0, 0.5, 1.0]).tobytes()),
        ("kind", "BYTES", [1], length_prefixed("bee")),
    ]
    here = endpoint_of(MIXED_BUNDLE, MIXED)
    absent = call(here, "ModelInfer", asked(*row))
    nan = call(here, "ModelInfer", asked(*row, ("heat", "FP64", [1], np.array([np.nan]).tobytes())))
    assert absent[0].code == nan[0].code == "OK" and scores_of(absent[1]) == scores_of(nan[1])


def raw_x(shape: list[int], raw: bytes) -> pb.ModelInferRequest:
    """One tensor x."""
    return asked(("x", "FP64", shape, raw))


TYPED = pb.ModelInferRequest(model_name="digits")
BAD = [
    (b"\xff\xff", "INVALID_ARGUMENT", "is not a ModelInferRequest"),
    (pb.ModelInferRequest(model_name="digits"), "INVALID_ARGUMENT", "no inputs"),
    (pb.ModelInferRequest(model_name="other"), "NOT_FOUND", "no model other"),
    (asked(rows_of(X), model_version="main.9"), "NOT_FOUND", "main.9"),
    (raw_x([2, 3], b"1"), "INVALID_ARGUMENT", "x: 1 bytes are not 2 x 3"),
    (raw_x([2, 4], b"1"), "INVALID_ARGUMENT", r"x: shape \[2, 4\]"),
    (asked(rows_of(X), ("id", "BYTES", [2], None)), "INVALID_ARGUMENT", "1 entries for 2 inputs"),
    (asked(rows_of(X), rows_of(X)), "INVALID_ARGUMENT", "stands twice"),
    (asked(rows_of(np.full((2, 3), np.nan))), "INVALID_ARGUMENT", "row 0 has no number"),
    (asked(("x", "BF16", [2, 3], b"1" * 12)), "INVALID_ARGUMENT", "datatype BF16"),
    (asked(rows_of(X), outputs=[{"name": "prob"}]), "INVALID_ARGUMENT", "no such output"),
    (pb.ModelInferRequest(model_name="digits", inputs=[contents("x", "FP16", [2, 3])]), "INVALID_ARGUMENT", "sent raw"),
    (
        pb.ModelInferRequest(model_name="digits", inputs=[contents("x", "FP64", [1, 3], fp32_contents=[1, 2, 3])]),
        "INVALID_ARGUMENT",
        "stands in fp64_contents alone",
    ),
    (
        pb.ModelInferRequest(model_name="digits", inputs=[contents("x", "INT8", [1, 3], int_contents=[1, 2, 300])]),
        "INVALID_ARGUMENT",
        "does not fit into INT8",
    ),
    (
        pb.ModelInferRequest(
            model_name="digits", inputs=[contents("x", "FP64", [1, 3], fp64_contents=[1])], raw_input_contents=[b""]
        ),
        "INVALID_ARGUMENT",
        "beside raw_input_contents",
    ),
]


@pytest.mark.parametrize(("request_message", "code", "words"), BAD, ids=[words for *_, words in BAD])
def test_a_bad_request_gets_its_status_naming_what_to_mend(request_message, code: str, words: str) -> None:
    """And an empty answer."""
    context, answer = call(endpoint_of(BUNDLE), "ModelInfer", request_message)
    assert context.code == code and re.search(words, context.details), context.details
    assert answer == pb.ModelInferResponse()


def test_a_request_over_the_limit_and_one_too_many_are_refused() -> None:
    """RESOURCE_EXHAUSTED both; the statistics count them as failed."""
    here = endpoint_of(BUNDLE, max_bytes=70_000)
    assert call(here, "ModelInfer", asked(rows_of(np.zeros((3000, 3)))))[0].code == "RESOURCE_EXHAUSTED"
    assert call(here, "ModelInfer", asked(rows_of(np.zeros((2900, 3)))))[0].code == "OK"
    here.pool.taken = 256 << 20
    context, _ = call(here, "ModelInfer", asked(rows_of(np.zeros((2900, 3)))))
    assert context.code == "RESOURCE_EXHAUSTED" and "are being answered already" in context.details
    assert (here.statistics.success.count, here.statistics.fail.count) == (1, 2)


def test_health_readiness_and_metadata_say_what_http_says() -> None:
    """Live without a state, ready only with one that can answer."""
    here, unlearned, empty = endpoint_of(BUNDLE), endpoint_of(open_parts(numbers_parts(False), NUMBERS)), endpoint_of(None)
    for endpoint, ready in ((here, True), (unlearned, False), (empty, False)):
        assert call(endpoint, "ServerLive", pb.ServerLiveRequest())[1].live
        assert call(endpoint, "ServerReady", pb.ServerReadyRequest())[1].ready is ready
        assert call(endpoint, "ModelReady", pb.ModelReadyRequest(name="digits"))[1].ready is ready
        for service in ("", "digits", "inference.GRPCInferenceService"):
            status = call(endpoint, "Check", health_pb2.HealthCheckRequest(service=service))[1].status
            assert status == (health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING)
    assert call(here, "Check", health_pb2.HealthCheckRequest(service="other"))[0].code == "NOT_FOUND"
    assert call(here, "ModelReady", pb.ModelReadyRequest(name="other"))[0].code == "NOT_FOUND"
    assert call(empty, "ModelInfer", asked(rows_of(X)))[0].code == "UNAVAILABLE"
    assert call(here, "ServerMetadata", pb.ServerMetadataRequest())[1].name == "millrace"
    metadata = call(here, "ModelMetadata", pb.ModelMetadataRequest(name="digits"))[1]
    assert [*metadata.versions] == ["main.41"] and [(column.name, [*column.shape]) for column in metadata.inputs] == [
        ("a", [-1, 1]),
        ("b", [-1, 2]),
    ]


def test_a_label_call_says_that_it_is_not_there_yet() -> None:
    """UNIMPLEMENTED; a broken one is told so first."""
    request = labels_pb2.LabelRequest(labels=[{"id": "r7/0", "text": "up"}])
    assert call(endpoint_of(BUNDLE), "Label", request)[0].code == "UNIMPLEMENTED"
    assert call(endpoint_of(BUNDLE), "Label", b"\xff")[0].code == "INVALID_ARGUMENT"


def test_every_grpc_status_in_the_table_is_one() -> None:
    """And no error means OK."""
    names = {code.name for code in grpc.StatusCode} - {"OK", "UNKNOWN"}
    assert {meaning.grpc for meaning in MEANINGS.values()} <= names


def test_over_a_real_server_errors_health_and_watch_arrive() -> None:
    """As any gRPC client sees them."""

    async def talk() -> None:
        held = [None]
        here = endpoint_of(None)
        object.__setattr__(here, "held", lambda: held[-1])
        async with answering(here) as client:
            watch = client("Watch", health_pb2.HealthCheckRequest(service="digits"))
            first = health_pb2.HealthCheckResponse.FromString(await watch.read())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client("ModelInfer", asked(rows_of(X)))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and "nothing to answer from" in caught.value.details()
            held.append(BUNDLE)
            second = health_pb2.HealthCheckResponse.FromString(await watch.read())
            assert (first.status, second.status) == (2, 1)
            watch.cancel()
            answer = await client("ModelInfer", asked(rows_of(X)))
            assert scores_of(answer) == BUNDLE.predict([X[:, :1], X[:, 1:]]).scores.tobytes()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client("ModelInfer", b"\xff\xff")
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(talk())


def test_making_the_message_classes_again_gives_the_ones_that_are_here(tmp_path: Path) -> None:
    """`make proto` on the files that are committed."""
    from grpc_tools import protoc

    folder = ROOT / "services" / "protocol"
    names = [f"millrace/services/protocol/{file.name}" for file in sorted(folder.glob("*.proto"))]
    places = [f"-Imillrace/services/protocol={folder}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert names and protoc.main(["protoc", *places, *names]) == 0
    made = {file.name: file.read_bytes() for file in (tmp_path / "millrace" / "services" / "protocol").iterdir()}
    assert made == {file.name: file.read_bytes() for file in folder.glob("*_pb2.py*")}


def test_the_token_and_its_scope_are_asked_for_on_every_call_but_health() -> None:
    """From this machine none is needed unless one was given; one for something else is another error."""
    guarded = endpoint_of(BUNDLE, token="s3cret")
    shown = (("authorization", "Bearer s3cret"),)
    request = asked(rows_of(X))
    assert call(guarded, "ModelInfer", request)[0].code == "UNAUTHENTICATED"
    assert call(guarded, "ModelInfer", request, FakeCall(metadata=shown))[0].code == "OK"
    for name in ("ServerMetadata", "ModelMetadata", "ModelStatistics", "ModelReady", "Label"):
        assert call(guarded, name, b"")[0].code == "UNAUTHENTICATED"
    for name in ("ServerLive", "ServerReady", "Check"):
        assert call(guarded, name, b"", FakeCall("ipv4:10.0.0.9:5"))[0].code == "OK"
