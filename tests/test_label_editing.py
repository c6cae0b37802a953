"""Directions from the latent classifier: the stored first order, the true Hessian, the released form, errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stx import label_editing
from stx.files.errors import EditError
from stx.latent_classifier import CELEBA, LatentClassifier
from tests.golden import assert_golden, normal
from tests.test_label_editing_golden import classifier


class Curved(torch.nn.Module):
    """Logits with a real curvature: l(w) = a.w + w'Qw / 2."""

    def __init__(self, n: int, d: int):
        super().__init__()
        random = torch.Generator().manual_seed(2)
        q = torch.randn(n * d, n * d, generator=random, dtype=torch.float64)
        self.q, self.a = q @ q.T / n, torch.randn(n * d, generator=random, dtype=torch.float64)

    def forward(self, ws):
        w = ws.flatten(1)
        return (w @ self.a + ((w @ self.q) * w).sum(1) / 2)[:, None], None

    def loss(self, w, shape):
        return F.softplus(-self(w.reshape(1, *shape))[0]).sum()  # label 1


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(4)
    return LatentClassifier(num_ws=3, w_dim=5, attributes=("Bald", "Smiling"), hidden=(16, 12), dim=4).eval()


def test_first_order_against_the_stored_numbers():
    net, ws, k = classifier(), normal("label_edit_first_order", "w", 3, 18, 512), 20
    gradient = label_editing.label_gradient(net, ws, [k] * 3, [0.0] * 3)
    direction = label_editing.first_order(net, ws, [k] * 3, [0.0] * 3, per_token=True)
    logits, _ = net(ws)
    loss = F.binary_cross_entropy_with_logits(logits[:, k], torch.zeros(3))
    got = {"grad": gradient / 3, "direct": -direction, "edited": label_editing.edit(ws, direction, 3.0), "loss": loss}
    assert_golden("label_edit_first_order", got | {"logits": logits})


def test_a_label_between_0_and_1_is_gone_to_from_both_sides(small):
    """The steepest descent of BCE with y = 0.5 lowers a logit above zero and raises one below."""
    ws = 3 * torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0))
    logits = small(ws)[0][:, 1]
    assert logits.min() < 0 < logits.max()
    expected = -label_editing.normalise(label_editing.label_gradient(small, ws, [1] * 8, [0.5] * 8))
    torch.testing.assert_close(label_editing.first_order(small, ws, [1] * 8, [0.5] * 8), expected)


def test_second_order_is_the_dominant_eigenvector():
    shape = (2, 3)
    net = Curved(*shape)
    ws = 0.3 * torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = label_editing.second_order(net, ws, [0] * 4, [1.0] * 4, iterations=300, xi=1e-5)
    for w, d in zip(ws, found, strict=True):
        hessian = torch.autograd.functional.hessian(lambda x: net.loss(x, shape), w.flatten())
        values, vectors = torch.linalg.eigh(hessian)
        top = vectors[:, values.abs().argmax()]
        assert abs(float(top @ d.flatten())) == pytest.approx(1, abs=1e-3)
        gradient = torch.autograd.functional.jacobian(lambda x: net.loss(x, shape), w.flatten())
        assert float(gradient @ d.flatten()) < 0  # the sign that lowers the loss


def test_within_a_linear_piece_second_order_is_first_order(small):
    ws = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(1))
    index, target = [0, 1, 0, 1, 0, 1], [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    first = label_editing.first_order(small, ws, index, target)
    second = label_editing.second_order(small.double(), ws.double(), index, target, xi=1e-6)
    small.float()
    torch.testing.assert_close(second.float(), first, atol=1e-3, rtol=0)


def test_released_second_order_is_noise_and_a_gradient():
    net, ws = classifier(), normal("label_edit_first_order", "w", 3, 18, 512)
    step = label_editing.released_second_order(net, ws, 20, seed=5)
    start = torch.randn(ws.shape, generator=torch.Generator().manual_seed(5))
    towards_one = label_editing.first_order(net, ws, [20] * 3, [1.0] * 3, per_token=True)
    assert F.cosine_similarity(step + start, towards_one, dim=2).min() > 1 - 1e-5
    assert step.norm(dim=2).mean() > 20  # of which the edit is 1


@pytest.mark.parametrize("order", [label_editing.first_order, label_editing.second_order])
def test_steps_lower_the_loss_of_every_code(small, order):
    ws = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(3))
    index, target = [0, 1] * 4, [1.0] * 4 + [0.0] * 4
    direction = order(small, ws, index, target)
    torch.testing.assert_close(direction.norm(dim=(1, 2)), torch.ones(8))
    before, after = (
        net[0].gather(1, torch.tensor(index)[:, None])[:, 0]
        for net in (small(ws), small(label_editing.edit(ws, direction, 0.01)))
    )
    assert (((after - before) > 0) == torch.tensor(target).bool()).all()


def test_a_direction_does_not_depend_on_the_rest_of_the_batch(small):
    ws = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(3))
    together = label_editing.first_order(small, ws, [0, 1, 0, 1], [1.0] * 4)
    alone = label_editing.first_order(small, ws[2:3], [0], [1.0])
    torch.testing.assert_close(together[2:3], alone)


def test_token_range_and_strength_per_code():
    ws, direction = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    edited = label_editing.edit(ws, direction, torch.tensor([1.0, 2.0]), tokens=slice(1, 3))
    assert edited[:, [0, 3]].abs().sum() == 0
    assert edited[0, 1:3].unique().tolist() == [1]
    assert edited[1, 1:3].unique().tolist() == [2]
    assert ws.abs().sum() == 0


def test_chosen_attributes():
    known, usual = ("Bald", "Smiling", "Hat", "Young"), ["Smiling", "Beard", "Bald"]
    assert label_editing.choose(" Hat,Young , Hat,", known, usual) == {"Hat": 2, "Young": 3}
    assert label_editing.choose("", known, usual) == {"Smiling": 1, "Bald": 0, "Hat": 2}
    assert label_editing.choose("", known, ["Red", "Green"]) == {"Bald": 0, "Smiling": 1}
    with pytest.raises(EditError, match=r"'hat' \(did you mean Hat\?\)"):
        label_editing.choose("Bald,hat", known, usual)
    labels = np.array([[True, False], [True, True]])
    assert label_editing.addable({"Bald": 0, "Smiling": 1}, labels) == {"Smiling": 1}
    with pytest.raises(EditError, match="all 2 pictures show Bald: take more"):
        label_editing.addable({"Bald": 0}, labels)


def test_unknown_attribute_and_unfit_codes(small):
    assert label_editing.position("Smiling", CELEBA) == 31
    with pytest.raises(EditError, match=r"'Eyeglases' \(did you mean Eyeglasses\?\); known: 5_o_Clock"):
        label_editing.position("Eyeglases", CELEBA)
    with pytest.raises(ValueError, match=r"\(2, 4, 5\): expected \[batch, 3, 5\]"):
        label_editing.first_order(small, torch.zeros(2, 4, 5), [0, 0], [1.0, 1.0])


def test_walking_and_the_strength_for_a_probability(small):
    ws = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(3))
    index, target = [0, 1] * 4, [1.0] * 4 + [0.0] * 4
    once = label_editing.walk(small, ws, index, target, 2.0)
    torch.testing.assert_close(once, label_editing.edit(ws, label_editing.first_order(small, ws, index, target), 2.0))
    many = label_editing.walk(small, ws, index, target, 2.0, steps=10)

    def losses(codes):
        logits = small(codes)[0].gather(1, torch.tensor(index)[:, None])[:, 0]
        return F.binary_cross_entropy_with_logits(logits, torch.tensor(target), reduction="none")

    assert losses(many).sum() <= losses(once).sum() + 1e-6
    direction = label_editing.first_order(small, ws, index, target)
    found = label_editing.strength_for(small, ws, direction, index, target, 0.7)
    reached = ~found.isnan()
    assert reached.any()
    p = 1 - losses(label_editing.edit(ws, direction, found.nan_to_num())).neg().exp()
    assert (1 - p)[reached].min() >= 0.7 - 1e-5
    short = label_editing.edit(ws, direction, (found - 0.3).clamp_min(0).nan_to_num())
    moved = reached & (found > 0.3)
    assert ((-losses(short)).exp()[moved] < 0.7).all()


def test_directions_where_the_classifier_is_certain(small):
    """BCE's gradient rounds to zero there; the direction does not."""
    torch.manual_seed(0)
    certain = LatentClassifier(num_ws=3, w_dim=5, attributes=("Bald", "Smiling"), hidden=(16, 12), dim=4).eval()
    certain.load_state_dict(small.state_dict())
    certain.logit_bias.data += 100.0
    ws = torch.randn(4, 3, 5)
    assert not label_editing.label_gradient(certain, ws, [1] * 4, [1.0] * 4).any()
    expected = label_editing.first_order(small, ws, [1] * 4, [1.0] * 4)
    torch.testing.assert_close(label_editing.first_order(certain, ws, [1] * 4, [1.0] * 4), expected)
    assert not label_editing.second_order(certain, ws, [1] * 4, [1.0] * 4).any()  # there is none, and it says so
    torch.testing.assert_close(label_editing.first_order(certain, ws, [1] * 4, [0.0] * 4), -expected)


class Linear(torch.nn.Module):
    """Logits a.w of three attributes."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(3)
        self.rows = torch.randn(3, 2 * 4, generator=random)

    def forward(self, ws):
        return ws.flatten(1) @ self.rows.T, None


def spread(gradient):
    """A covariance that is not the same in all directions."""
    return gradient * torch.linspace(0.1, 3, 8).view(2, 4)


def test_a_natural_step_is_the_steepest_of_its_length_in_the_metric_of_codes():
    net, ws = Linear(), torch.zeros(1, 2, 4)
    found = label_editing.natural_order(net, ws, [1], [1.0], natural=spread)
    random = torch.randn(500, 2, 4, generator=torch.Generator().manual_seed(0))
    lengths = lambda d: (d.square() / spread(torch.ones(2, 4))).sum((1, 2)).sqrt()  # noqa: E731  Mahalanobis
    gain = lambda d: (d.flatten(1) @ net.rows[1]) / lengths(d)  # noqa: E731
    assert gain(found) > gain(random).max()
    plain = label_editing.natural_order(net, ws, [1], [0.0], natural=lambda g: g)
    torch.testing.assert_close(plain, label_editing.first_order(net, ws, [1], [0.0]))


def test_a_constrained_step_leaves_the_other_logits_but_for_tied_ones():
    net, ws = Linear(), torch.zeros(2, 2, 4)
    tied = torch.zeros(3, 3, dtype=torch.bool)
    options = {"natural": spread, "ridge": 1e-9}
    step = label_editing.constrained_order(net, ws, [0, 2], [1.0, 0.0], tied=tied, **options)
    logits, _ = net(step)
    assert logits[0, 0] > 0.1 and logits[1, 2] < -0.1
    assert logits[0, 1:].abs().max() < 1e-4 and logits[1, :2].abs().max() < 1e-4
    tied[0, 1] = True
    freed, _ = net(label_editing.constrained_order(net, ws[:1], [0], [1.0], tied=tied, **options))
    assert freed[0, 1].abs() > 1e-2 and freed[0, 2].abs() < 1e-4 and freed[0, 0] > logits[0, 0]
