"""mammoth's ER, ER-ACE and DER++ over a stream of ours; run by bench-continual in the environment `.venv-continual`.

    python tests/bench/peer_mammoth.py CHECKOUT < requests.jsonl > results.jsonl

CHECKOUT is a clone of aimagelab/mammoth (MIT; it is on no package index). Its models and its buffer are used as they are; the
loop around them is its own online one: one pass, one `observe` a batch.
"""

from __future__ import annotations

import json
import sys
import time
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from continual_peers import Network, accuracies, augmentation, stream_of


class Images:
    """What mammoth asks its data set."""

    N_CLASSES, N_TASKS, N_CLASSES_PER_TASK, SETTING = 10, 5, 2, "class-il"
    TEST_TRANSFORM = None

    @staticmethod
    def get_normalization_transform() -> None:
        """None is applied."""


def model_of(request: dict[str, Any], network: Network) -> Any:
    """mammoth's model of that name."""
    from models.derpp import Derpp
    from models.er import Er
    from models.er_ace import ErACE

    settings = Namespace(
        lr=request["rate"],
        optimizer="sgd",
        optim_wd=0.0,
        optim_mom=0.0,
        optim_nesterov=False,
        buffer_size=request["buffer_rows"],
        minibatch_size=request["replay_rows"],
        label_perc=1,
        task_free=True,
        use_custom_classifier=True,
        alpha=0.2,
        beta=1.0,
        device="cpu",
        seed=request["seed"],
        num_workers=0,
    )
    model = {"er": Er, "er-ace": ErACE, "derpp": Derpp}[request["method"]]
    made = model(network, torch.nn.CrossEntropyLoss(), settings, None, Images())
    made.device = torch.device("cpu")
    made.transform = made.normalization_transform = _whole_batches(augmentation(request))
    made.buffer.device = made.device
    return made


def _whole_batches(augment: torch.nn.Module | None) -> torch.nn.Module | None:
    """The same, as the kind of transform that mammoth gives all rows at once and not one by one."""
    from utils.kornia_utils import KorniaAugNoGrad

    class WholeBatches(KorniaAugNoGrad):
        """Ours in its place."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            """Images (n, C, H, W)."""
            return augment(images)

    return None if augment is None else WholeBatches()


def absent(name: str) -> None:
    """Whatever of mammoth's data sets is imported by name and used by none of the methods here."""
    if name.startswith("__"):
        raise AttributeError(name)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One pass; the time is that of learning alone."""
    torch.manual_seed(request["seed"])
    np.random.seed(request["seed"])
    stream, network = stream_of(request), Network(request["network"])
    model = model_of(request, network)
    augment, seconds, seen = augmentation(request), 0.0, []
    for at, start in enumerate(range(0, len(stream.x), request["step_rows"])):
        x, y = stream.x[start : start + request["step_rows"]], stream.y[start : start + request["step_rows"]]
        begun = time.process_time()
        model.net.train()
        model.observe(x if augment is None else augment(x), y, x)
        seconds += time.process_time() - begun
        if (at + 1) % request["every"] == 0:
            seen.append(accuracies(network, stream))
    seen.append(accuracies(network, stream))
    return {"accuracies": seen, "seconds": seconds}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[1])))
    datasets = types.ModuleType("datasets")  # its own imports every data set there, and what each of them needs
    vars(datasets).update(__path__=[str(Path(sys.argv[1]) / "datasets")], __getattr__=absent)
    sys.modules["datasets"] = datasets
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
