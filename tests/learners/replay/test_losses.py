"""The losses of the replay family against slow writings-down of their papers' equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from training_steps import cosine, learner, lesson, rows

from millrace.learners.replay import losses
from millrace.learners.replay.augmentation import augmented, partners
from millrace.learners.replay.er_ace import ErAce
from millrace.learners.replay.hpcr import Hpcr, HpcrConfig
from millrace.learners.replay.onpro import Onpro
from millrace.learners.replay.step import StepRows, TrainingStep
from millrace.learners.replay.uer import Uer, UerConfig

TAU = 0.09


def unit_rows(count: int, p: int, seed: int) -> Tensor:
    """Random directions, float64."""
    return functional.normalize(torch.from_numpy(np.random.default_rng(seed).normal(size=(count, p))))


def contrastive(z: Tensor, proxies: Tensor, y: list[int], samples: bool) -> Tensor:
    """SupCon anchored at rows, over the proxies of the rows' labels, with or without the other rows: pair by pair."""
    total = z.new_zeros(())
    for i, own in enumerate(y):
        others = [(proxies[c], c) for c in y] + [(z[j], y[j]) for j in range(len(y)) if samples and j != i]
        scores = torch.stack([torch.dot(z[i], other) / TAU for other, _ in others])
        positive = [at for at, (_, c) in enumerate(others) if c == own]
        total = total - (scores[positive] - scores.exp().sum().log()).mean()
    return total / len(y)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), min_size=40, max_size=40))
def test_the_short_form_of_pcr_is_its_contrastive_form_over_40_by_40_pairs(seed: int, y: list[int]) -> None:
    """With multiplicity of labels, to 1e-12; and so are the gradients."""
    z, proxies = unit_rows(40, 7, seed), unit_rows(5, 7, seed + 1).requires_grad_()
    short = losses.proxy_contrast(z @ proxies.T, torch.tensor(y), torch.ones(40), TAU)
    long = contrastive(z, proxies, y, samples=False)
    assert torch.allclose(short, long, rtol=0, atol=1e-12)
    gradient, other = (torch.autograd.grad(loss, proxies, retain_graph=True)[0] for loss in (short, long))
    assert torch.allclose(gradient, other, rtol=0, atol=1e-11)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), min_size=2, max_size=20))
def test_pairs_of_rows_in_hpcr_are_supcon_over_rows_and_proxies(seed: int, y: list[int]) -> None:
    """The unconditional form, pair by pair."""
    z, proxies = unit_rows(len(y), 7, seed), unit_rows(5, 7, seed + 1)
    short = losses.proxy_and_row_contrast(z, proxies, torch.tensor(y), TAU).mean()
    assert torch.allclose(short, contrastive(z, proxies, y, samples=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("step", "kappa"), [(0, 0.5625), (250, 1.8), (500, 0.5625), (125, 1.18125), (1250, 1.8)])
def test_the_coefficient_of_hpcr_is_its_table(step: int, kappa: float) -> None:
    """.5625, 1.8, .5625 at 0, 250, 500; and on without end, by the learner's own count of steps."""
    assert Hpcr(HpcrConfig()).coefficient(step) == pytest.approx(kappa, abs=1e-12)


def test_distilled_logits_are_the_mean_square_over_gathered_columns() -> None:
    """PCD as the public code gathers it: the columns of the step's labels, repeats included, raw and augmented rows."""
    rng = np.random.default_rng(0)
    current, old = torch.from_numpy(rng.normal(size=(6, 4))), torch.from_numpy(rng.normal(size=(3, 4)))
    labels = torch.tensor([0, 0, 1, 3, 3, 3, 1, 0])
    drawn = StepRows(current, labels[:3], torch.ones(3), {"logits": old, "known": torch.full((3,), 4)})
    slow = functional.mse_loss(current[:, labels], old.repeat(2, 1)[:, labels])
    assert torch.allclose(Hpcr.logits_kept(current, labels, drawn), slow, rtol=0, atol=1e-12)
    drawn.stored["known"] = torch.tensor([1, 2, 4])
    squares = [float((current[i, c] - old[i % 3, c]) ** 2) for i in range(6) for c in labels.tolist() if c < [1, 2, 4][i % 3]]
    assert float(Hpcr.logits_kept(current, labels, drawn)) == pytest.approx(np.mean(squares), abs=1e-12)


def test_distilled_structure_is_the_cross_entropy_of_off_diagonal_similarities() -> None:
    """SCD row by row: softmax over the other rows, by stored features and by today's."""
    current, stored = unit_rows(6, 5, 0), torch.from_numpy(np.random.default_rng(1).normal(size=(3, 5)))
    then = functional.normalize(stored.repeat(2, 1))
    slow = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        new, old = (functional.softmax(side[others] @ side[i] / TAU, 0) for side in (current, then))
        slow -= float((old * new.log()).sum()) / 6
    assert float(Hpcr(HpcrConfig()).structure_kept(current, stored)) == pytest.approx(slow, abs=1e-4)  # 1e-6 in each direction


@given(
    st.integers(1, 6).flatmap(
        lambda c: st.tuples(
            st.lists(st.booleans(), min_size=c, max_size=c),
            st.lists(st.integers(0, c - 1), min_size=1, max_size=12),
        )
    )
)
def test_the_mask_of_er_ace_is_the_set_of_its_definition(case: tuple[list[bool], list[int]]) -> None:
    """Left in: classes in the batch, and classes never seen, wherever their columns stand and however large the batch."""
    before, y = case
    seen = torch.tensor([was or at in y for at, was in enumerate(before)])
    left_in = {at for at in range(len(before)) if at in set(y) or not before[at]}
    masked = ErAce.masked(torch.zeros(len(y), len(before)), torch.tensor(y), seen)
    assert {int(at) for at in torch.isfinite(masked[0]).nonzero()[:, 0]} == left_in
    assert torch.equal(masked, masked[:1].expand(len(y), -1))


def test_the_mask_of_er_ace_is_not_for_drawn_rows() -> None:
    """Which stand after the incoming ones."""
    seen = torch.tensor([True, True, True, False])
    masked = ErAce.masked(torch.zeros(3, 4), torch.tensor([2]), seen)
    assert torch.isfinite(masked).tolist() == [[False, False, True, True], [True] * 4, [True] * 4]


def test_rows_weigh_by_their_weights_in_their_own_part() -> None:
    """A sum with shares is the sum of the parts' weighted means."""
    rng = np.random.default_rng(0)
    logits, y = torch.from_numpy(rng.normal(size=(7, 3))), torch.tensor([0, 1, 2, 0, 1, 1, 0])
    weight = torch.from_numpy(rng.random(7))
    parts = [StepRows(logits[at], y[at], weight[at]) for at in (slice(0, 5), slice(5, 7))]
    slow = sum(losses.cross_entropy(part.x, part.y, part.weight) for part in parts)
    assert torch.allclose(losses.summed_cross_entropy(logits, y, TrainingStep.shares(*parts)), slow, rtol=0, atol=1e-12)


@given(st.integers(0, 10_000))
def test_incoming_rows_never_lengthen_a_class_vector_in_uer(seed: int) -> None:
    """The gradient of L_in is orthogonal to each w_c; of plain cross entropy it is not."""
    rng = np.random.default_rng(seed)
    z, w = (torch.from_numpy(rng.normal(size=(n, 6))) for n in (10, 4))
    y, w = torch.from_numpy(rng.integers(0, 4, 10)), w.requires_grad_()
    (turned,) = torch.autograd.grad(Uer.incoming_loss(Uer(UerConfig()).angles(z, w), y, torch.ones(10)), w)
    assert ((turned * w).sum(1).abs() <= 1e-4 * turned.norm(dim=1) * w.norm(dim=1)).all()  # 1e-6 guards a zero length
    (plain,) = torch.autograd.grad(losses.cross_entropy(z @ w.T, y, torch.ones(10)), w)
    assert ((plain * w).sum(1).abs() > 1e-4 * plain.norm(dim=1) * w.norm(dim=1)).any()


@given(st.integers(0, 1000))
def test_weights_count_rows(seed: int) -> None:
    """A row of weight 2 pulls as two rows do, one of weight 0 not at all."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 4)))
    y = torch.tensor([0, 1, 3])
    weighted = losses.cross_entropy(logits, y, torch.tensor([2.0, 0.0, 1.0])) * 3
    assert torch.allclose(weighted, functional.cross_entropy(logits[[0, 0, 2]], y[[0, 0, 2]], reduction="sum"))


@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=2, max_size=12))
def test_instance_contrast_is_supervised_infonce_pair_by_pair(seed: int, y: list[int]) -> None:
    """Rows alone in their class take no part."""
    z, parts = unit_rows(len(y), 5, seed), []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        shares = functional.log_softmax(z[others] @ z[i] / TAU, 0)
        alike = [at for at, j in enumerate(others) if y[j] == y[i]]
        if alike:
            parts.append(-float(shares[alike].mean()))
    contrast = losses.supervised_contrast(z, torch.tensor(y), TAU)
    assert float(contrast) == pytest.approx(np.mean(parts) if parts else 0.0, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_prototype_contrast_is_its_equation_pair_by_pair(seed: int, count: int) -> None:
    """Each of 2 K prototypes picks its twin out of the 2 K - 1 others."""
    both = unit_rows(2 * count, 5, seed)
    slow = 0.0
    for i in range(2 * count):
        others = [j for j in range(2 * count) if j != i]
        shares = functional.log_softmax(both[others] @ both[i] / 0.5, 0)
        slow -= float(shares[others.index((i + count) % (2 * count))]) / (2 * count)
    assert float(losses.prototype_contrast(both[:count], both[count:], 0.5)) == pytest.approx(slow, abs=1e-4)


def test_prototypes_are_the_means_of_the_classes_that_occur() -> None:
    """Absent classes have none."""
    z = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    labels, means = losses.prototypes(z, torch.tensor([4, 4, 1]))
    assert labels.tolist() == [1, 4] and means.tolist() == [[5.0, 5.0], [2.0, 1.0]]


def test_classes_are_mixed_the_more_often_the_closer_they_stand() -> None:
    """P(i, j) = softmax over pairs of 1 / distance, and rows are drawn by it."""
    centres = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 4.0]])
    chances = Onpro.closeness(centres)
    inverse = torch.tensor([1 / 0.5, 1 / 4.0, 1 / np.hypot(0.5, 4.0)], dtype=torch.float32)
    assert torch.allclose(chances[[0, 0, 1], [1, 2, 2]], inverse.softmax(0)) and float(chances.sum()) == pytest.approx(1.0)
    y, counts = torch.tensor([7, 8, 9] * 20), np.zeros((3, 3))
    for seed in range(40):
        first, other = partners(y, chances, torch.tensor([7, 8, 9]), 30, np.random.default_rng(seed))
        assert first[:30].tolist() == list(range(30)) and len(set(other[:30].tolist())) == 30
        np.add.at(counts, (y[first[30:]] - 7, y[other[30:]] - 7), 1)
    assert np.allclose(counts / 1200, chances, atol=0.05)


def test_crops_are_windows_of_the_padded_image_and_flips_mirror_them() -> None:
    """Every augmented image is one of the (2 border + 1)^2 windows, flipped or not; and all draws occur."""
    image = torch.arange(1.0, 65.0).view(1, 1, 8, 8)
    padded = functional.pad(image, (1, 1, 1, 1))[0, 0]
    windows = {tuple(padded[i : i + 8, j : j + 8].flatten().tolist()) for i in range(3) for j in range(3)}
    mirrored = {tuple(padded[i : i + 8, j : j + 8].flip(1).flatten().tolist()) for i in range(3) for j in range(3)}
    views = augmented(image.expand(300, 1, 8, 8), "crop-flip", np.random.default_rng(0))
    assert {tuple(view.flatten().tolist()) for view in views} == windows | mirrored
    unflipped = augmented(image.expand(100, 1, 8, 8), "crop", np.random.default_rng(0))
    assert {tuple(view.flatten().tolist()) for view in unflipped} == windows


def by_hand(kind: str, **config: object) -> tuple[Tensor, list[StepRows], dict[str, Tensor], list[Tensor]]:
    """A lesson's loss, the incoming rows and two draws, the weights, and features of those rows."""
    taught = learner(kind, **config)
    taught.learn_many(rows(60, 1))
    y = [0, 1, 1, 2, 0, 0, 2, 2, 1, 0]
    first, again = lesson(taught, y), lesson(taught, y)
    loss = taught.method.loss(first)
    assert loss is not None
    parts = [again.incoming, again.drawn(), again.drawn()]
    weights = taught.network.weights
    bodies = [(part.x @ weights["body.0.weight"].T + weights["body.0.bias"]).relu() for part in parts]
    return loss.detach(), parts, weights, bodies


@pytest.mark.parametrize("replay_rows", [10, 4])
def test_er_is_the_sum_of_two_cross_entropies(replay_rows: int) -> None:
    """CE(incoming) + CE(drawn), each a mean over its own rows, however many they are."""
    loss, (new, old, _), w, (z, z_old, _) = by_hand("er", replay_rows=replay_rows)
    assert len(old) == replay_rows
    logits = [side @ w["head.weight"].T + w["head.bias"] for side in (z, z_old)]
    slow = functional.cross_entropy(logits[0], new.y) + functional.cross_entropy(logits[1], old.y)
    assert torch.allclose(loss, slow, atol=1e-6)


@pytest.mark.parametrize("replay_rows", [10, 4])
def test_derpp_is_equation_6(replay_rows: int) -> None:
    """CE(incoming) + alpha MSE to stored logits + beta CE, with two independent draws."""
    loss, (new, replayed, other), w, z = by_hand("derpp", alpha=0.3, beta=0.7, replay_rows=replay_rows)
    logits = [side @ w["head.weight"].T + w["head.bias"] for side in z]
    slow = functional.cross_entropy(logits[0], new.y) + 0.7 * functional.cross_entropy(logits[2], other.y)
    slow = slow + 0.3 * functional.mse_loss(logits[1], replayed.stored["logits"])
    assert not torch.equal(replayed.x, other.x)
    assert torch.allclose(loss, slow, atol=1e-6)


def test_uer_is_angles_for_incoming_rows_and_products_for_drawn_ones() -> None:
    """L_in + L_re."""
    loss, (new, old, _), w, (z, z_old, _) = by_hand("uer", temperature=0.2)
    slow = functional.cross_entropy(cosine(z, w["head.weight"]) / 0.2, new.y)
    slow = slow + functional.cross_entropy(z_old @ w["head.weight"].T, old.y)
    assert torch.allclose(loss, slow, atol=1e-4)


def test_pcr_is_its_contrastive_form_over_all_rows_of_the_step() -> None:
    """Incoming and drawn rows together."""
    loss, (new, old, _), w, (z, z_old, _) = by_hand("pcr")
    both = functional.normalize(torch.cat([z, z_old]).double())
    proxies = functional.normalize(w["head.weight"].double())
    slow = contrastive(both, proxies, torch.cat([new.y, old.y]).tolist(), samples=False)
    assert float(loss) == pytest.approx(float(slow.detach()), abs=1e-3)


def test_hpcr_is_the_sum_of_its_three_parts() -> None:
    """kappa L_PCR + alpha PCD + beta SCD."""
    loss, (new, old, _), w, (z, z_old, _) = by_hand("hpcr", distil_rows=0, period_steps=7)
    hpcr = Hpcr(HpcrConfig(period_steps=7))
    both, proxies = losses.unit(torch.cat([z, z_old])), losses.unit(w["head.weight"])
    labels = torch.cat([new.y, old.y])
    slow = hpcr.coefficient(6) * losses.proxy_contrast(both @ proxies.T, labels, torch.ones(20), TAU)
    slow = slow + 0.1 * Hpcr.logits_kept(both[10:] @ proxies.T, labels, old)
    slow = slow + 0.5 * hpcr.structure_kept(both[10:], old.stored["features"])
    assert torch.allclose(loss, slow, atol=1e-5)


def test_er_ace_is_cross_entropy_over_the_mask_and_over_all() -> None:
    """With cosines times 10."""
    loss, (new, old, _), w, (z, z_old, _) = by_hand("er-ace")
    logits = [10.0 * cosine(side, w["head.weight"]) for side in (z, z_old)]
    slow = functional.cross_entropy(logits[0], new.y) + functional.cross_entropy(logits[1], old.y)
    assert torch.allclose(loss, slow, atol=1e-4)


def test_onpro_is_the_sum_of_its_parts() -> None:
    """Instance and prototype contrast of incoming and drawn rows, and the cross entropy of mixed ones."""
    taught = learner("onpro", projection=5, replay_rows=12, mixing=1.0)
    taught.learn_many(rows(60, 1))
    first, again = lesson(taught, [0, 1, 1, 2]), lesson(taught, [0, 1, 1, 2])
    loss = taught.method.loss(first)
    w, drawn, slow = {name: weight.detach() for name, weight in taught.network.weights.items()}, again.drawn(), 0.0
    assert loss is not None and drawn is not None

    def body(x: Tensor) -> Tensor:
        return (x @ w["body.0.weight"].T + w["body.0.bias"]).relu()

    for part in (again.incoming, drawn):
        z = functional.normalize(body(part.x) @ w["projection.weight"].T)
        names, centres = losses.prototypes(z, part.y)
        slow += float(losses.supervised_contrast(z, part.y, 0.07) + losses.prototype_contrast(centres, centres, 0.5))
    mixed, other, share = again.mixed(drawn, Onpro.closeness(centres.detach()), names, 3, 1.0)
    logits = body(mixed.x) @ w["head.weight"].T + w["head.bias"]
    soft = functional.one_hot(mixed.y, 3) * (1 - share[:, None]) + functional.one_hot(other, 3) * share[:, None]
    slow += float(functional.cross_entropy(logits, soft))
    assert float(loss.detach()) == pytest.approx(slow, abs=1e-3)


def test_pec_is_a_squared_error_for_the_students_of_the_rows_classes_alone() -> None:
    """Each present class's student descends the mean over its rows; scores are minus the errors of all students."""
    taught = learner("pec")
    taught.learn_many(rows(60, 1))
    y = [0, 2, 2]
    step = lesson(taught, y)
    loss = taught.method.loss(step)
    tensors = {name: tensor.detach() for name, tensor in taught.network.tensors.items()}
    x = step.incoming.x
    errors = torch.zeros(3, 3)
    for c in range(3):
        sides = []
        for first, second, pick in (("head.0", "head.1", c), ("teacher.0", "teacher.1", None)):
            own = {n: tensors[n] if pick is None else tensors[n][pick] for n in tensors if n.startswith((first, second))}
            hidden = functional.layer_norm(
                x @ own[f"{first}.weight"].T + own[f"{first}.bias"], own[f"{first}.bias"].shape, eps=1e-6
            )
            sides.append(hidden.relu() @ own[f"{second}.weight"].T + own[f"{second}.bias"])
        errors[:, c] = ((sides[0] - sides[1]) ** 2).mean(1)
    assert loss is not None and float(loss.detach()) == pytest.approx(float(errors[0, 0] + errors[1:, 2].mean()), abs=1e-5)
    assert torch.allclose(step.logits(x), -errors, atol=1e-5)
    before = tensors["head.0.weight"].clone()
    absent = taught.optimiser.moments["first.head.0.weight"][1].clone()
    more = rows(3, 4)
    more.y[:] = np.array(list(taught.columns), dtype=object)[y]
    taught.learn_many(more)
    after = taught.network.weights["head.0.weight"].detach()
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])
    assert torch.equal(taught.optimiser.moments["first.head.0.weight"][1], absent)
