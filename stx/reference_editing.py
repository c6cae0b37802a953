"""One attribute carried over from a reference code by a transformer layer (Hu et al. 2022, section 3.4).

A decoder layer whose queries are the source's tokens and whose keys and values are the reference's. The paper's form:
the softmax runs over the queries, so that source tokens compete for each reference token, then every source token's
weights are scaled to the sum one over the keys (as in slot attention, Locatello et al. 2020), and the layer gives the
change of the code. The released form: a plain layer that gives the edited code itself. Both have the same weights.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from stx.files.config import Configured
from stx.files.errors import InputError
from stx.runtime import batched
from stx.style_transformer import DROPOUT, FEED_FORWARD, HEADS, attention_weights
from stx.training.loop import Resumable

FORMS = ("paper", "released")
EMBEDDED = 1024  # codes at a time


class CompetitiveAttention(nn.MultiheadAttention):
    """Multi-head attention Norm_K(Softmax_Q(Q K^T / sqrt(d))) V, with the weights and the call of torch's own.

    In logarithms: a query that loses every key by so much that its shares round to zero keeps weights of the sum one.
    """

    def forward(self, query, key, value, need_weights: bool = True, **kwargs):
        """Batch first; returns the output and the weights `[b, queries, keys]`, averaged over heads, or None."""
        parts = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            rearrange(F.linear(x, w, b), "b n (h d) -> b h n d", h=self.num_heads)
            for x, (w, b) in zip((query, key, value), parts, strict=True)
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).log_softmax(2).softmax(3)
        dropped = F.dropout(weights, self.dropout, self.training)
        out = self.out_proj(rearrange(dropped @ v, "b h n d -> b n (h d)"))
        return out, weights.mean(1) if need_weights else None


class ReferenceEditor(Configured, nn.Module):
    """Source and reference W+ codes to the edited code, for the one attribute it was trained on (section 3.4).

    The paper's form is w_e = w_s + T(w_s, w_r), the released one w_e = T(w_s, w_r). T attends from w_s, after
    self-attention, to keys and values of w_r.
    form: "paper" or "released". attribute: its name, where known. A new editor of the paper's form changes nothing.
    """

    def __init__(
        self,
        *,
        w_dim: int = 512,
        form: str = "released",
        feed_forward: int = FEED_FORWARD,
        dropout: float = DROPOUT,
        attribute: str = "",
    ):
        super().__init__()
        if form not in FORMS:
            raise InputError(f"unknown form {form!r}: expected one of {', '.join(FORMS)}")
        self.w_dim, self.form, self.attribute = w_dim, form, attribute
        layer = nn.TransformerDecoderLayer(w_dim, HEADS, feed_forward, dropout, batch_first=True)
        if form == "paper":
            layer.multihead_attn = CompetitiveAttention(w_dim, HEADS, dropout, batch_first=True)
            nn.init.zeros_(layer.norm3.weight)
        self.transformerlayer = layer

    def forward(
        self, ws: Float[Tensor, "b num_ws w_dim"], reference: Float[Tensor, "b num_ws w_dim"]
    ) -> Float[Tensor, "b num_ws w_dim"]:
        """Raises `ValueError` when the codes do not have the same shape and this width."""
        if ws.shape != reference.shape or ws.shape[-1] != self.w_dim:
            raise InputError(
                f"source {tuple(ws.shape)} and reference {tuple(reference.shape)}: expected two of "
                f"[batch, num_ws, {self.w_dim}]"
            )
        out = self.transformerlayer(ws, reference)
        return ws + out if self.form == "paper" else out

    def attention(
        self, ws: Float[Tensor, "b num_ws w_dim"], reference: Float[Tensor, "b num_ws w_dim"]
    ) -> Float[Tensor, "b num_ws num_ws"]:
        """How much each source token takes from each reference token, averaged over heads; rows have the sum one."""
        return attention_weights(self.transformerlayer, lambda: self(ws, reference))


def losses(
    classifier: nn.Module,
    edited: Float[Tensor, "b num_ws w_dim"],
    source: Float[Tensor, "b num_ws w_dim"],
    was: Float[Tensor, "b attributes dim"],
    wanted: Float[Tensor, "b attributes dim"],
    index: int,
) -> dict[str, Float[Tensor, ""]]:
    """|C_f^k(w_e) - C_f^k(w_r)|^2, |C_f^j(w_e) - C_f^j(w_s)|^2 over j != k, |w_e - w_s|^2 (equation 11), each a mean.

    edited, source: w_e and w_s; was, wanted: the embeddings C_f of w_s and w_r; index: the attribute k. Returns these
    terms, all of weight 1, as `attribute`, `others` (zero without other attributes) and `code`.
    """
    is_now = classifier(edited)[1]
    others = [i for i in range(is_now.shape[1]) if i != index]
    return {
        "attribute": F.mse_loss(is_now[:, index], wanted[:, index]),
        "others": F.mse_loss(is_now[:, others], was[:, others]) if others else is_now.new_zeros(()),
        "code": F.mse_loss(edited, source),
    }


class ReferenceTask(Resumable):
    """Trains one editor on inverted codes (a `training.Task`): half of a batch are sources, half references.

    index: the attribute's position in `classifier`, which is frozen.
    """

    kept = ("editor", "optimizer", "schedule")

    def __init__(
        self,
        *,
        editor: ReferenceEditor,
        classifier: nn.Module,
        index: int,
        ws: Float[Tensor, "n num_ws w_dim"],
        steps: int,
        batch: int = 64,
        lr: float = 1e-4,
        weight_decay: float = 5e-4,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.editor, self.classifier = editor.to(device), classifier.to(device).eval().requires_grad_(False)
        self.index, self.ws, self.seed, self.device = index, ws, seed, device
        self.examples, self.batch = len(ws), 2 * (batch // 2)  # sources, then as many references
        self.embeddings = self._embed(ws)
        self.optimizer = torch.optim.Adam(editor.parameters(), lr=lr, weight_decay=weight_decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def step(self, step: int) -> dict[str, float]:
        """One update."""
        self.editor.train()
        where = self.positions(step)
        parts = self._losses(self.ws[where], self.embeddings[where])
        loss = sum(parts.values())
        self.descend(loss)
        return {"loss": loss.item()} | {name: part.item() for name, part in parts.items()}

    @torch.no_grad()
    def validate(self, ws: Float[Tensor, "n num_ws w_dim"]) -> dict[str, float]:
        """Losses on held-out codes, the second half being references of the first."""
        self.editor.eval()
        even = ws[: 2 * (len(ws) // 2)]
        return {f"val_{name}": part.item() for name, part in self._losses(even, self._embed(even)).items()}

    def _losses(self, ws: Tensor, embeddings: Tensor) -> dict[str, Tensor]:
        (source, reference), (was, wanted) = (part.to(self.device).chunk(2) for part in (ws, embeddings))
        return losses(self.classifier, self.editor(source, reference), source, was, wanted, self.index)

    def _embed(self, ws: Tensor) -> Tensor:
        """The classifier's embeddings of codes, which no update changes."""
        return batched(lambda part: self.classifier(part.to(self.device))[1], ws, EMBEDDED)
