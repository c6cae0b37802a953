"""Which attributes does a code show: logits and an embedding for each attribute of W+ codes (Hu et al. 2022, 3.3).

A shared MLP, then for every attribute a linear embedding and a linear logit. The released LCNet_40 keeps two small
layers for each of 40 attributes; here all of them are one batched product.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.2
CELEBA = (  # the forty, in CelebA's order
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose"),
    *("Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses"),
    *("Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
    *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks"),
    *("Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick"),
    *("Wearing_Necklace", "Wearing_Necktie", "Young"),
)


class LatentClassifier(nn.Module):
    """W+ codes to logits and embeddings.

    num_ws, w_dim: shape of the codes; attributes: their names; hidden: widths of the shared MLP; dim: of an embedding.
    """

    def __init__(
        self,
        *,
        num_ws: int,
        w_dim: int,
        attributes: Sequence[str],
        hidden: Sequence[int] = (2048, 512),
        dim: int = 32,
    ):
        super().__init__()
        self.num_ws, self.w_dim, self.attributes = num_ws, w_dim, tuple(attributes)
        self.config = {
            "num_ws": num_ws,
            "w_dim": w_dim,
            "attributes": list(attributes),
            "hidden": list(hidden),
            "dim": dim,
        }
        widths, count = [num_ws * w_dim, *hidden], len(attributes)
        self.fcs = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.embedding_weight = nn.Parameter(torch.randn(count, dim, widths[-1]) / widths[-1] ** 0.5)
        self.embedding_bias = nn.Parameter(torch.zeros(count, dim))
        self.logit_weight = nn.Parameter(torch.randn(count, dim) / dim**0.5)
        self.logit_bias = nn.Parameter(torch.zeros(count))

    def forward(
        self, ws: Float[Tensor, "b num_ws w_dim"]
    ) -> tuple[Float[Tensor, "b attributes"], Float[Tensor, "b attributes dim"]]:
        """Logits, positive where the attribute is likely, and embeddings. Raises `ValueError` for other shapes."""
        if ws.ndim != 3 or tuple(ws.shape[1:]) != (self.num_ws, self.w_dim):
            raise ValueError(f"codes of shape {tuple(ws.shape)}: expected [batch, {self.num_ws}, {self.w_dim}]")
        x = ws.flatten(1)
        for layer in self.fcs:
            x = F.leaky_relu(layer(x), SLOPE)
        embeddings = torch.einsum("bh,kdh->bkd", x, self.embedding_weight) + self.embedding_bias
        return (embeddings * self.logit_weight).sum(2) + self.logit_bias, embeddings
