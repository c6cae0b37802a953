"""One attribute carried over from a reference code by a transformer layer (Hu et al. 2022, section 3.4).

The released form: a plain decoder layer, the source tokens as queries, the reference tokens as keys and values, whose
output is the edited code itself.
"""

from jaxtyping import Float
from torch import Tensor, nn

from stx.style_transformer import DROPOUT, FEED_FORWARD, HEADS


class ReferenceEditor(nn.Module):
    """Source and reference W+ codes to the edited code, for the one attribute it was trained on."""

    def __init__(self, *, w_dim: int = 512):
        super().__init__()
        self.w_dim, self.config = w_dim, {"w_dim": w_dim}
        self.transformerlayer = nn.TransformerDecoderLayer(w_dim, HEADS, FEED_FORWARD, DROPOUT, batch_first=True)

    def forward(
        self, ws: Float[Tensor, "b num_ws w_dim"], reference: Float[Tensor, "b num_ws w_dim"]
    ) -> Float[Tensor, "b num_ws w_dim"]:
        """Raises `ValueError` when the codes do not have the same shape and this width."""
        if ws.shape != reference.shape or ws.shape[-1] != self.w_dim:
            raise ValueError(
                f"source {tuple(ws.shape)} and reference {tuple(reference.shape)}: expected two of "
                f"[batch, num_ws, {self.w_dim}]"
            )
        return self.transformerlayer(ws, reference)
