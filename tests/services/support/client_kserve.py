"""kserve's own inference clients as they are, against a served `digits`: python client_kserve.py http|grpc HOST:PORT.

Prints one JSON line. It runs in .venv-clients: this library and ours ask for different releases of protobuf.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

X = np.array([[3.0, 4.0, 5.0, 6.0], [0.0, 16.0, 1.0, 2.0]])
SITE = np.array(["north", "south"], dtype=object)


def request(binary: bool) -> InferRequest:
    """Both fields of two rows."""
    inputs = [InferInput("x", [2, 4], "FP64"), InferInput("site", [2], "BYTES")]
    for tensor, values in zip(inputs, (X, SITE), strict=True):
        tensor.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model_name="digits", infer_inputs=inputs)


def answer(response) -> dict:
    """What came back, as plain JSON."""
    outputs = {output.name: output.as_numpy() for output in response.outputs}
    labels = [text.decode() if isinstance(text, bytes) else str(text) for text in outputs["label"]]
    return {"scores": outputs["scores"].tolist(), "label": labels, "version": response.model_version}


async def over_http(address: str) -> dict:
    """Health, and the rows as JSON and as binary tensors."""
    url = f"http://{address}"
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        return {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, "digits"),
            "json": answer(await client.infer(url, request(False), model_name="digits")),
            "binary": answer(await client.infer(url, request(True), model_name="digits")),
        }


async def over_grpc(address: str) -> dict:
    """Health, and the rows as typed contents and as raw bytes."""
    async with InferenceGRPCClient(address) as client:
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("digits"),
            "json": answer(await client.infer(request(False))),
            "binary": answer(await client.infer(request(True))),
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run({"http": over_http, "grpc": over_grpc}[sys.argv[1]](sys.argv[2]))))
