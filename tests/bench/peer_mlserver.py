"""The same linear model as a runtime of MLServer, in .venv-peers: python peer_mlserver.py HTTP_PORT GRPC_PORT METRICS_PORT.

Without MLServer's pool of worker processes: a model this small is answered faster without.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

W = np.random.default_rng(0).normal(size=(100, 10))
LABELS = [str(digit) for digit in range(10)]


class Linear(MLModel):
    """Scores and labels."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        scores = NumpyCodec.decode_input(payload.inputs[0]) @ W
        labels = [LABELS[at] for at in scores.argmax(axis=1)]
        outputs = [NumpyCodec.encode_output("scores", scores), StringCodec.encode_output("label", labels)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main(http: int, grpc: int, metrics: int) -> None:
    """Until killed."""
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    server = MLServer(Settings(host="127.0.0.1", parallel_workers=0, debug=False, use_structured_logging=False, **ports))
    model = ModelSettings(name="digits", implementation=Linear)
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
