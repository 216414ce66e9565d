"""The least that answers the same over HTTP: FastAPI on one uvicorn, msgspec, NumPy. python bare_http.py PORT [echo].

``echo``: the same bytes every time, from a bare protocol without a parser: how fast the callers can go.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
import numpy as np
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response

W = np.random.default_rng(0).normal(size=(100, 10))
LABELS = [str(digit) for digit in range(10)]
app = FastAPI()


class Tensor(msgspec.Struct):
    """An input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Inference(msgspec.Struct):
    """A request."""

    inputs: list[Tensor]


DECODER = msgspec.json.Decoder(Inference)


@app.post("/v2/models/digits/infer")
async def infer(request: Request) -> Response:
    """Scores and labels of the rows."""
    tensor = DECODER.decode(await request.body()).inputs[0]
    scores = np.array(tensor.data).reshape(tensor.shape) @ W
    labels = [LABELS[at] for at in scores.argmax(axis=1)]
    outputs = [
        {"name": "scores", "datatype": "FP64", "shape": list(scores.shape), "data": scores.ravel().tolist()},
        {"name": "label", "datatype": "BYTES", "shape": [len(labels)], "data": labels},
    ]
    return Response(msgspec.json.encode({"model_name": "digits", "outputs": outputs}), media_type="application/json")


class Echo(asyncio.Protocol):
    """Answers every piece of bytes with the same ones."""

    ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 600\r\n\r\n" + b" " * 600

    def connection_made(self, transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self.ANSWER)


async def echo(port: int) -> None:
    """Until killed."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[2:] == ["echo"]:
        uvloop.run(echo(int(sys.argv[1])))
    else:
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
