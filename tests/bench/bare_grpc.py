"""The least that answers the same over gRPC: grpc.aio and NumPy. python bare_grpc.py PORT; `request` prints a request's bytes.

It runs in .venv-peers, with MLServer's copy of the protocol's messages; what goes over the wire is the same.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import numpy as np
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc import dataplane_pb2_grpc as services

W = np.random.default_rng(0).normal(size=(100, 10))
LABELS = [str(digit).encode() for digit in range(10)]


def request() -> bytes:
    """One row of 100 numbers, raw, as tritonclient sends it."""
    made = messages.ModelInferRequest(model_name="digits")
    made.inputs.add(name="x", datatype="FP64", shape=[1, 100])
    made.raw_input_contents.append(np.linspace(-1, 1, 100).tobytes())
    return made.SerializeToString()


class Answers(services.GRPCInferenceServiceServicer):
    """ModelInfer alone."""

    async def ModelInfer(self, request, context):  # noqa: N802  # the protocol's name
        """Scores and labels of the rows."""
        x = np.frombuffer(request.raw_input_contents[0], "<f8").reshape(list(request.inputs[0].shape))
        scores = x @ W
        labels = [LABELS[at] for at in scores.argmax(axis=1)]
        made = messages.ModelInferResponse(model_name="digits", id=request.id)
        made.outputs.add(name="scores", datatype="FP64", shape=scores.shape)
        made.outputs.add(name="label", datatype="BYTES", shape=[len(labels)])
        made.raw_output_contents.append(scores.tobytes())
        made.raw_output_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in labels))
        return made


async def serve(port: int) -> None:
    """Until killed."""
    server = grpc.aio.server()
    services.add_GRPCInferenceServiceServicer_to_server(Answers(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "request":
        sys.stdout.buffer.write(request())
    else:
        asyncio.run(serve(int(sys.argv[1])))
