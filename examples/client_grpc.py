"""Ask a served `digits` over gRPC by NVIDIA's client: pip install 'tritonclient[grpc]'; python3 client_grpc.py [HOST:PORT]."""

import sys

import numpy as np
import tritonclient.grpc as triton

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "localhost:8001"
ROWS = np.array([[0.0] * 64, [float(pixel % 17) for pixel in range(64)]])


def main() -> None:
    """Two rows in one request: a label each, and the state that says so."""
    x = triton.InferInput("x", list(ROWS.shape), "FP64")
    x.set_data_from_numpy(ROWS)
    with triton.InferenceServerClient(ADDRESS) as client:
        answer = client.infer("digits", [x])
    labels = [label.decode() for label in answer.as_numpy("label")]
    print(labels, answer.get_response().model_version)


main()
