"""Networks: their sizes, their growth, their form as ONNX, and torch kept away from whoever does not need it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional
from training_steps import learner, rows

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import LearnerError
from millrace.learners.protocol import Batch
from millrace.learners.replay.config import Head, ReplayConfig, Spec
from millrace.learners.replay.networks import layers_of, run
from millrace.learners.replay.onnx import to_onnx
from millrace.learners.replay.optimiser import Optimiser
from millrace.learners.replay.servable import NetworkServable
from millrace.learners.replay.step import Network
from millrace.learners.table import LEARNERS

KINDS = [kind for kind, algorithm in LEARNERS.items() if algorithm.needs == "torch"]
PICTURES = {"image": (3, 9, 8), "channels": 3}


def test_the_reduced_resnet_has_the_size_that_papers_report() -> None:
    """1.093 million weights before the head, and 160 features of a 32x32 image."""
    network = Network(Spec(3072, "resnet18", channels=20, image=(3, 32, 32), pixels=True), "cpu", 0)
    assert network.p == 160
    assert sum(weight.numel() for weight in network.weights.values()) == 1_093_140


@pytest.mark.parametrize("kind", ["pcr", "hpcr"])
def test_an_84_by_84_image_fits_the_head(kind: str) -> None:
    """Its 640 features crash the public PCR and HPCR, whose head is built for 160."""
    config = LEARNERS[kind].config(network="resnet18", channels=20, image=(3, 84, 84), pixels=True, step_rows=2, augment="none")
    made = LEARNERS[kind].learner(config, 3 * 84 * 84, 0)
    x = np.random.default_rng(0).integers(0, 256, (4, 3 * 84 * 84)).astype(float)
    made.learn_many(Batch(x, np.array(["a", "b", "a", "b"], dtype=object)))
    assert made.network.weights["head.weight"].shape == (2, 640) and made.steps == 2


def test_a_residual_block_is_two_convolutions_and_what_passes_them_by() -> None:
    """The interpreter against the block written out in torch, in training and in answering."""
    network = Network(Spec(3 * 8 * 8, "resnet18", channels=2, image=(3, 8, 8)), "cpu", 0)
    block, tensors = network.layers[5], network.tensors  # the first with a stride
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 2, 8, 8)).astype(np.float32))

    def normed(value: torch.Tensor, name: str) -> torch.Tensor:
        centred = value - value.mean((0, 2, 3), keepdim=True)
        return centred / (value.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    inner = normed(functional.conv2d(x, tensors["body.3.0.conv.weight"], stride=2, padding=1), "body.3.0").relu()
    main = normed(functional.conv2d(inner, tensors["body.3.1.conv.weight"], padding=1), "body.3.1")
    skip = normed(functional.conv2d(x, tensors["body.3.skip.conv.weight"], stride=2), "body.3.skip")
    assert torch.allclose(run((block,), tensors, x, training=True), (main + skip).relu(), atol=1e-5)
    moved = tensors["body.3.0.norm.mean"]
    assert torch.allclose(
        moved, 0.1 * functional.conv2d(x, tensors["body.3.0.conv.weight"], stride=2, padding=1).mean((0, 2, 3))
    )
    before = moved.clone()
    run((block,), tensors, x)
    assert torch.equal(moved, before)


def test_a_head_that_grows_keeps_the_rows_it_had() -> None:
    """New rows are drawn; the old ones, their moments and the average stay; what was answered is answered."""
    made = learner("er", optimiser="adam", rate=0.01, ema=0.9)
    made.learn_many(rows(60, 1, classes=2))
    before = {name: tensor.clone() for name, tensor in (made.network.weights | made.optimiser.moments | made.average).items()}
    made._grow(4)
    after = made.network.weights | made.optimiser.moments | made.average
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor), name
    assert after["head.weight"].shape == (4, 8) and (after["first.head.weight"][2:] == 0).all()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_optimiser_steps_as_torch_s_own(kind: str) -> None:
    """SGD with momentum and decay, and Adam, over ten steps."""
    ours = {"w": torch.tensor([[1.0, -2.0], [0.5, 3.0]]), "b": torch.tensor([0.1, 0.2])}
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in ours.items()}
    peer = (
        torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9, weight_decay=0.01)
        if kind == "sgd"
        else torch.optim.Adam(theirs.values(), lr=0.1, weight_decay=0.01)
    )
    own = Optimiser(kind, 0.9, 0.01, rests=False)
    rng = np.random.default_rng(0)
    for _ in range(10):
        gradients = {name: torch.from_numpy(rng.normal(size=tensor.shape)).float() for name, tensor in ours.items()}
        own.step(ours, gradients, 0.1)
        for name, tensor in theirs.items():
            tensor.grad = gradients[name]
        peer.step()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "convnet", "resnet18"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_as_onnx_gives_the_same_classes_and_scores(kind: str, network: str) -> None:
    """Through onnxruntime, within 1e-5, for numbers and for pixels, images with odd sides included."""
    if kind == "pec" and network != "mlp":
        pytest.skip("PEC has one kind of network")
    rng = np.random.default_rng(0)
    for pixels in (False, True):
        x = rng.integers(0, 256, (40, 216)).astype(float) if pixels else rng.normal(5.0, 3.0, (40, 216))
        chosen = {} if kind == "pec" else {**PICTURES, "network": network, "replay_rows": 6}
        made = learner(kind, d=216, pixels=pixels, **chosen)
        made.learn_many(Batch(x, np.array(["ä", "b", "c"], dtype=object)[rng.integers(0, 3, 40)]))
        served = made.servable()
        session = onnxruntime.InferenceSession(to_onnx(served), providers=["CPUExecutionProvider"])
        for count in (1, 7):
            scores, label = session.run(["scores", "label"], {"x": x[:count]})
            expected = served.predict_many(Batch(x[:count]))
            assert scores.dtype == np.float64 and np.abs(scores - expected).max() < 1e-5
            assert label.tolist() == [served.classes[at] for at in expected.argmax(axis=1)]


def test_before_a_class_is_known_there_is_no_onnx() -> None:
    """With what to do."""
    with pytest.raises(LearnerError, match="learn a row first"):
        to_onnx(learner("er").servable())


def test_an_answer_to_many_rows_is_that_to_few() -> None:
    """Large questions are cut; the answers are those to the parts, to the bit."""
    made = learner("er")
    made.learn_many(rows(60, 1))
    many = rows(1100, 2)
    cuts = [made.predict_many(many.rows(at, at + 512)) for at in (0, 512, 1024)]
    assert np.array_equal(made.predict_many(many), np.concatenate(cuts))
    assert made.predict_many(many.rows(0, 0)).shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_add_up_to_one_where_a_learner_says_they_are(kind: str) -> None:
    """PEC's scores are minus its errors, which are not comparable to them."""
    made = learner(kind)
    made.learn_many(rows(60, 1))
    scores = made.predict_many(rows(20, 2))
    assert made.probabilities == bool(np.allclose(scores.sum(axis=1), 1.0, atol=1e-5))
    assert (scores >= 0).all() or not made.probabilities


def test_a_served_network_survives_as_arrays_and_json() -> None:
    """The plain part of its arrays is JSON, and what comes back answers bit for bit."""
    made = learner("er", network="resnet18", image=(1, 2, 3), channels=2)
    made.learn_many(rows(60, 1))
    arrays = made.servable().arrays()
    plain = json.loads(json.dumps({name: value for name, value in arrays.items() if not isinstance(value, np.ndarray)}))
    again = NetworkServable.from_arrays(arrays | plain)
    assert again.spec == made.spec and np.array_equal(again.predict_many(rows(9, 3)), made.predict_many(rows(9, 3)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network", "mpl"), ("hidden", (0,)), ("hidden", (3.5,)), ("buffer_rows", 0), ("buffer_rows", 2.5), ("rate", 0.0),
        ("rate", float("nan")), ("momentum", 1.0), ("ema", -0.1), ("step_rows", True), ("classes", ("a", "a")),
        ("image", (1, 2)), ("task", "regress"), ("augment", "flip"), ("device", "tpu"), ("warm_up_rows", 1),
    ],
)  # fmt: skip
def test_a_key_out_of_range_is_refused_by_name(key: str, value: object) -> None:
    """With the value and what is allowed."""
    with pytest.raises(ValueError, match=key):
        ReplayConfig(**{key: value})


@pytest.mark.parametrize("network", ["convnet", "resnet18"])
def test_a_network_for_images_needs_an_image(network: str) -> None:
    """Named."""
    with pytest.raises(ValueError, match="needs image"):
        learner("er", network=network)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    """With what to do."""
    with pytest.raises(LearnerError, match="cuda"):
        learner("er", device="cuda")


def test_layers_are_data() -> None:
    """The same spec gives the same layers, whoever asks."""
    spec = Spec(12, "convnet", channels=2, image=(3, 2, 2), head=Head())
    assert layers_of(spec) == layers_of(replace(spec))


def python(code: str) -> str:
    """What a fresh Python says."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_table_and_the_algorithms_import_no_torch() -> None:
    """Nor does an untaught config."""
    names = ", ".join(f"millrace.learners.replay.{kind.replace('-', '_')}" for kind in KINDS)
    code = f"import sys, millrace.learners.table, {names}; print('torch' in sys.modules)"
    assert python(code) == "False"


def test_without_torch_a_learner_that_needs_it_names_the_extra() -> None:
    """Ridge goes on without."""
    code = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from millrace.learners.errors import MillraceError
from millrace.learners.table import LEARNERS
LEARNERS["ridge"].ready().learner(LEARNERS["ridge"].config(), 3, 0)
for use in (lambda a: a.ready(), lambda a: a.learner(a.config(), 3, 0), lambda a: a.servable({})):
    try:
        use(LEARNERS["uer"])
    except MillraceError as error:
        print(error)
"""
    sentence = f"This learner runs on torch, which is not here. {how_to_get('torch')}"
    assert python(code).splitlines() == [sentence] * 3
