"""The Style Transformer: learnable queries that find the W+ code of a picture (Hu et al., CVPR 2022, section 3.2).

Queries z go through a mapping network of their own, then three transformer layers let them attend to each other and
to coarse, medium and fine features of the picture. Names of weights as in the released code; the number of tokens
follows from the generator instead of being 18 for every resolution.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx.encoder import Encoder
from stx.files.errors import InputError
from stx.perception.irse import IR_SE50, IRSE, upsample_add
from stx.stylegan2.networks import Generator, mapping_network

STAGES = ("coarse", "medium", "fine")
HEADS, FEED_FORWARD, DROPOUT = 4, 1024, 0.1  # of the released code


class CrossAttentionLayer(nn.TransformerDecoderLayer):
    """A decoder layer whose tokens do not attend to each other."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.self_attn

    def _sa_block(self, x: Tensor, *_args, **_kwargs) -> Tensor:
        return torch.zeros_like(x)


@torch.no_grad()
def attention_weights(layer: nn.TransformerDecoderLayer, run: Callable[[], object]) -> Float[Tensor, "b queries keys"]:
    """What a layer's queries take from its keys while `run` runs, averaged over heads; rows have the sum one.

    For networks in evaluation: dropout would drop weights.
    """
    cross, seen = layer.multihead_attn, []
    hook = cross.register_forward_pre_hook(lambda _, given: seen.append(given))
    try:
        run()
    finally:
        hook.remove()
    return cross(*seen[0], need_weights=True)[1]


class StyleTransformerEncoder(IRSE):
    """Picture and queries to codes, without the average (section 3.2).

    A stage takes tokens w to Norm(w + SelfAttention(w)), then to Norm(w + Softmax(Q K^T / sqrt(d)) V) with queries Q of
    w, keys K and values V of a flattened feature map, then to Norm(w + FFN(w)), which is the w of the next stage.

    widths, units: of the IR-SE backbone; the last width is the width of the tokens. stages: how many of coarse, medium
    and fine the queries attend to; self_attention: whether they attend to each other (the paper's ablations).
    feed_forward: width inside the feed-forward blocks.
    """

    def __init__(
        self,
        *,
        num_ws: int,
        widths: Sequence[int] = IR_SE50["widths"],
        units: Sequence[int] = IR_SE50["units"],
        in_channels: int = 3,
        stages: int = len(STAGES),
        self_attention: bool = True,
        feed_forward: int = FEED_FORWARD,
    ):
        super().__init__(widths=widths, units=units, in_channels=in_channels)
        fine, medium, w_dim = widths[-3:]
        self.z = nn.Parameter(torch.randn(1, num_ws, w_dim))
        if not 1 <= stages <= len(STAGES):
            raise InputError(f"{stages} stages: expected 1 to {len(STAGES)}")
        self.used = STAGES[:stages]
        if stages > 1:
            self.latlayer1 = nn.Conv2d(medium, w_dim, 1)
        if stages > 2:
            self.latlayer2 = nn.Conv2d(fine, w_dim, 1)
        kind = nn.TransformerDecoderLayer if self_attention else CrossAttentionLayer
        for stage in self.used:
            layer = kind(w_dim, HEADS, feed_forward, DROPOUT, batch_first=True)
            self.add_module(f"transformerlayer_{stage}", layer)

    def memories(self, image: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b tokens w_dim"]]:
        """What the queries attend to, coarse, medium and fine: feature maps flattened row by row."""
        c1, c2, c3 = super().forward(image)[-3:]
        maps = [c3]
        if len(self.used) > 1:
            maps.append(upsample_add(c3, self.latlayer1(c2)))
        if len(self.used) > 2:
            maps.append(upsample_add(maps[-1], self.latlayer2(c1)))
        return [p.flatten(2).transpose(1, 2) for p in maps]

    def forward(
        self, image: Float[Tensor, "b c h w"], query: Float[Tensor, "b num_ws w_dim"]
    ) -> Float[Tensor, "b num_ws w_dim"]:
        """Codes as offsets from the average."""
        return self.stages(image, query)[-1]

    def stages(self, image: Tensor, query: Tensor) -> list[Float[Tensor, "b num_ws w_dim"]]:
        """The tokens after the coarse, medium and fine layer."""
        tokens, outputs = query, []
        for stage, memory in zip(self.used, self.memories(image), strict=True):
            tokens = getattr(self, f"transformerlayer_{stage}")(tokens, memory)
            outputs.append(tokens)
        return outputs


class StyleTransformer(Encoder):
    """Picture to W+ code: w = E(picture, M(z)) + latent_avg (section 3.2).

    E: the encoder; z: learnt queries; M: an own copy of the generator's mapping network, which is trained too.
    num_ws, n_mlp: tokens and mapping depth of the generator; widths, units: of the backbone, the last width being the
    generator's w_dim. queries: learnt tokens, `num_ws` unless the checkpoint has more (released files have 18 for every
    resolution): all attend to each other, the first `num_ws` are the code. in_channels: 6 for one that refines. stages,
    self_attention, feed_forward: see `StyleTransformerEncoder`; mapping: queries as z through the MLP, or free tokens.
    """

    def __init__(
        self,
        *,
        num_ws: int,
        n_mlp: int,
        widths: Sequence[int],
        units: Sequence[int],
        queries: int | None = None,
        in_channels: int = 3,
        stages: int = len(STAGES),
        self_attention: bool = True,
        mapping: bool = True,
        feed_forward: int = FEED_FORWARD,
    ):
        super().__init__(num_ws=num_ws, w_dim=widths[-1], in_channels=in_channels)
        queries = queries or num_ws
        if queries < num_ws:
            raise InputError(f"{queries} queries cannot give {num_ws} tokens")
        self.encoder = StyleTransformerEncoder(
            num_ws=queries,
            widths=widths,
            units=units,
            in_channels=in_channels,
            stages=stages,
            self_attention=self_attention,
            feed_forward=feed_forward,
        )
        self.style = mapping_network(widths[-1], n_mlp) if mapping else nn.Identity()

    @classmethod
    def for_generator(
        cls, generator: Generator, *, widths: Sequence[int], units: Sequence[int], **options
    ) -> "StyleTransformer":
        """A new one that starts from the generator's mapping network, which is then trained with it (section 3.2).

        options: as the constructor's. Free tokens start as w of random z.
        Raises `ValueError` when the last width is not the generator's w_dim.
        """
        n_mlp = generator.config["n_mlp"]
        net = super().for_generator(generator, widths=widths, units=units, n_mlp=n_mlp, **options)
        if net.config["mapping"]:
            net.style.load_state_dict(generator.style.state_dict())
        else:
            with torch.no_grad():
                net.encoder.z.copy_(generator.mapping(net.encoder.z[0].to(generator.latent_avg)))
        return net

    def queries(self) -> Float[Tensor, "queries w_dim"]:
        """The initial style tokens: z through the mapping network."""
        return self.style(self.encoder.z[0])

    def offsets(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b num_ws w_dim"]:
        """Codes as offsets from the average."""
        query = self.queries().expand(len(image), -1, -1)
        return self.encoder(image, query)[:, : self.num_ws]

    def attention(self, image: Float[Tensor, "b c h w"], stage: str) -> Float[Tensor, "b num_ws map_h map_w"]:
        """Which parts of the picture each token attends to in a stage ("coarse", "medium" or "fine").

        Averaged over heads; each token's weights have the sum one. Raises `InputError` for a stage it does not have.
        """
        if stage not in self.encoder.used:
            raise InputError(f"stage {stage!r}: expected one of {', '.join(self.encoder.used)}")
        layer = getattr(self.encoder, f"transformerlayer_{stage}")
        weights = attention_weights(layer, lambda: self.offsets(image))[:, : self.num_ws]
        height = round(math.sqrt(weights.shape[2] * image.shape[2] / image.shape[3]))
        return weights.unflatten(2, (height, -1))
