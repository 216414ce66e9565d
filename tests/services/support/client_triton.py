"""tritonclient as it is, against a served `digits`: python client_triton.py http|grpc HOST:PORT. Prints one JSON line.

It runs in .venv-clients: this library and ours ask for different releases of protobuf.
"""

import json
import sys
from types import ModuleType

import numpy as np
import tritonclient.grpc
import tritonclient.http

X = np.array([[3.0, 4.0, 5.0, 6.0], [0.0, 16.0, 1.0, 2.0]])
SITE = np.array(["north", "south"], dtype=object)


def inputs(client: ModuleType, binary: bool | None) -> list:
    """Both fields of two rows, as binary tensors or as JSON; gRPC has one way only."""
    made = [client.InferInput("x", [2, 4], "FP64"), client.InferInput("site", [2], "BYTES")]
    for tensor, values in zip(made, (X, SITE), strict=True):
        tensor.set_data_from_numpy(values, **({} if binary is None else {"binary_data": binary}))
    return made


def outputs(client: ModuleType, binary: bool | None) -> list:
    """Both outputs, likewise."""
    asked = {} if binary is None else {"binary_data": binary}
    return [client.InferRequestedOutput(name, **asked) for name in ("scores", "label")]


def answer(result) -> dict:
    """What came back, as plain JSON."""
    labels = [text.decode() if isinstance(text, bytes) else str(text) for text in result.as_numpy("label")]
    return {"scores": result.as_numpy("scores").tolist(), "label": labels}


def class_names(client: ModuleType, server: object, binary: bool | None) -> dict:
    """The names of the classes, from an answer and from the metadata, which over gRPC has no place for them in this library."""
    response = server.infer("digits", inputs(client, binary)).get_response()
    if client is tritonclient.grpc:
        return {"answer": response.parameters["classes"].string_param}
    described = server.get_model_metadata("digits")["outputs"][0]["parameters"]["classes"]
    return {"answer": response["parameters"]["classes"], "metadata": described}


def said_of_nan(client: ModuleType, server: object, binary: bool | None) -> str:
    """Why a NaN is refused in a field that must have a number; as JSON this library writes it out."""
    tensors = inputs(client, binary)
    tensors[0].set_data_from_numpy(np.where(X == 0.0, np.nan, X), **({} if binary is None else {"binary_data": binary}))
    try:
        server.infer("digits", tensors)
    except client.InferenceServerException as error:
        return str(error)
    return "answered"


def main() -> None:
    """Health, metadata, and the same rows in every form the library has."""
    client = {"http": tritonclient.http, "grpc": tritonclient.grpc}[sys.argv[1]]
    told = {} if sys.argv[1] == "http" else {"as_json": True}
    forms = {"binary": True, "json": False} if sys.argv[1] == "http" else {"binary": None}
    with client.InferenceServerClient(sys.argv[2]) as server:
        answers = {
            "live": server.is_server_live(),
            "ready": server.is_server_ready(),
            "model_ready": server.is_model_ready("digits"),
            "server": server.get_server_metadata(**told),
            "model": server.get_model_metadata("digits", **told),
            "default": answer(server.infer("digits", inputs(client, forms["binary"]))),
        }
        for form, binary in forms.items():
            answers[form] = answer(server.infer("digits", inputs(client, binary), outputs=outputs(client, binary)))
        answers["classes"] = class_names(client, server, forms["binary"])
        answers["nan"] = {form: said_of_nan(client, server, binary) for form, binary in forms.items()}
        try:
            server.infer("nobody", inputs(client, forms["binary"]))
        except client.InferenceServerException as error:
            answers["refused"] = str(error)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
