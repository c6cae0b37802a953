"""The paper's and the released form of the reference editor, its losses and its training."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from stx import recipes, reference_editing
from stx.files.errors import EditError
from stx.latent_classifier import LatentClassifier
from stx.reference_editing import CompetitiveAttention, ReferenceEditor


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    made = LatentClassifier(num_ws=5, w_dim=8, attributes=("Bald", "Smiling", "Hat"), hidden=(16, 12), dim=4)
    made.embedding_weight.data *= 10  # embeddings that differ between codes, as trained ones do
    return made.eval().requires_grad_(False)


def codes(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 5, 8, generator=torch.Generator().manual_seed(seed))


def test_attention_is_a_softmax_over_queries_normalised_over_keys():
    torch.manual_seed(0)
    one = CompetitiveAttention(6, 1, batch_first=True).eval()
    q, k = torch.randn(2, 3, 6), torch.randn(2, 7, 6)
    with torch.no_grad():
        out, weights = one(q, k, k)
        for b in range(2):
            wq, wk, wv = one.in_proj_weight.split(6)
            logits = (q[b] @ wq.T) @ (k[b] @ wk.T).T / 6**0.5
            share = logits.exp() / logits.exp().sum(0)
            share = share / share.sum(1, keepdim=True)
            torch.testing.assert_close(weights[b], share)
            torch.testing.assert_close(out[b], one.out_proj(share @ (k[b] @ wv.T)))
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3))


def test_a_query_that_loses_every_key_by_far_has_weights_and_gradients():
    """All its shares round to zero in float32: exp(-400)."""
    one = CompetitiveAttention(2, 1, batch_first=True)
    with torch.no_grad():
        one.in_proj_weight.copy_(torch.eye(2).repeat(3, 1))
        one.in_proj_bias.zero_()
    q = torch.tensor([[[20.0, 0.0], [-8.0, 0.0]]], requires_grad=True)
    k = torch.tensor([[[20.0, 0.0], [20.0, 1.0]]])
    out, weights = one(q, k, k)
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 2))
    out.sum().backward()
    assert q.grad.isfinite().all() and out.isfinite().all()


def test_heads_are_those_of_torch():
    """With one query the softmax over queries is constant: every key weighs the same, whatever the heads."""
    torch.manual_seed(0)
    ours = CompetitiveAttention(12, 4, batch_first=True).eval()
    theirs = torch.nn.MultiheadAttention(12, 4, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        theirs.in_proj_weight[:12] = 0  # torch's weights become even too
        k = torch.randn(2, 5, 12)
        torch.testing.assert_close(ours(k[:, :1], k, k)[0], theirs(k[:, :1], k, k)[0])


def test_a_lone_attribute_has_no_others_to_keep():
    torch.manual_seed(0)
    net = LatentClassifier(num_ws=5, w_dim=8, attributes=("Bald",), hidden=(16, 12), dim=4).eval()
    found = reference_editing.losses(net, codes(3), codes(3, 1), net(codes(3, 1))[1], net(codes(3, 2))[1], 0)
    assert found["others"] == 0
    assert found["attribute"] > 0


def test_a_new_editor_of_the_papers_form_changes_nothing():
    torch.manual_seed(0)
    paper, released = ReferenceEditor(w_dim=8, form="paper").eval(), ReferenceEditor(w_dim=8).eval()
    assert torch.equal(paper(codes(3), codes(3, 1)), codes(3))
    assert not torch.allclose(released(codes(3), codes(3, 1)), codes(3), atol=0.1)
    assert paper.state_dict().keys() == released.state_dict().keys()
    with pytest.raises(ValueError, match="unknown form 'papers': expected one of paper, released"):
        ReferenceEditor(w_dim=8, form="papers")
    for attention in (paper.attention(codes(3), codes(3, 1)), released.attention(codes(3), codes(3, 1))):
        torch.testing.assert_close(attention.sum(2), torch.ones(3, 5))


def test_losses_compare_the_right_embeddings(net):
    source, reference, edited = codes(4), codes(4, 1), codes(4, 2)
    now, was, wanted = (net(ws)[1] for ws in (edited, source, reference))
    got = reference_editing.losses(net, edited, source, was, wanted, 1)
    torch.testing.assert_close(got["attribute"], F.mse_loss(now[:, 1], wanted[:, 1]))
    torch.testing.assert_close(got["others"], F.mse_loss(now[:, [0, 2]], was[:, [0, 2]]))
    torch.testing.assert_close(got["code"], F.mse_loss(edited, source))
    unedited = reference_editing.losses(net, source, source, was, wanted, 1)
    assert unedited["others"] == unedited["code"] == 0 < unedited["attribute"]


@pytest.mark.parametrize("form", ["paper", "released"])
def test_training_carries_the_attribute_over(tmp_path, net, form):
    recipe = recipes.ReferenceRecipe(steps=250, batch=64, lr=5e-3, form=form, feed_forward=32, dropout=0.0)
    editor, log = recipes.train_reference_editor(net, "Smiling", codes(400), recipe, tmp_path / "run")
    source, reference = codes(64, 5), codes(64, 6)
    was, wanted = net(source)[1], net(reference)[1]
    with torch.no_grad():
        edited = editor(source, reference)
    was, now = (reference_editing.losses(net, ws, source, was, wanted, 1)["attribute"] for ws in (source, edited))
    assert now < 0.85 * was
    assert log["val_attribute"].notna().any()
    assert editor.config["attribute"] == "Smiling"
    again, _ = recipes.train_reference_editor(net, "Smiling", codes(400), recipe, tmp_path / "run")
    assert torch.equal(again(source, reference), editor(source, reference))
    other, _ = recipes.train_reference_editor(
        net, "Smiling", codes(40), dataclasses.replace(recipe, steps=1), tmp_path / "run"
    )
    assert not torch.equal(other(source, reference), editor(source, reference))


def test_unknown_attribute_and_odd_batches(tmp_path, net):
    with pytest.raises(EditError, match="did you mean Smiling"):
        recipes.train_reference_editor(net, "Smilling", codes(9), recipes.ReferenceRecipe(steps=1), tmp_path)
    recipe = recipes.ReferenceRecipe(steps=1, batch=7, feed_forward=16)
    recipes.train_reference_editor(net, "Bald", codes(20), recipe, tmp_path)
