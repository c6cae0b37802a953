"""Ranger: rectified Adam, lookahead and gradient centralisation; the optimiser of the paper's released code.

Equal to the released code's numbers (tests/golden/ranger.npz). `pytorch_optimizer.Ranger` 4.1 is not: it ascends
during the rectification warm-up and leaves out Adam's bias correction. Unlike the released code, gradients are not
changed in place.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from stx.files.errors import InputError

RECTIFY_FROM = 5  # length of the approximated moving average from which on the variance is trusted


class Ranger(torch.optim.Optimizer):
    """RAdam (arXiv 1908.03265) with lookahead (1907.08610) and gradient centralisation (2004.01461).

    lookahead_steps, lookahead_alpha: every so many steps the weights go back to that fraction of the way travelled.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        lookahead_steps: int = 6,
        lookahead_alpha: float = 0.5,
    ):
        if lr <= 0 or eps <= 0 or lookahead_steps < 1 or not 0 <= lookahead_alpha <= 1:
            raise InputError("Ranger needs lr > 0, eps > 0, lookahead_steps >= 1 and lookahead_alpha in [0, 1]")
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings | {"k": lookahead_steps, "alpha": lookahead_alpha})

    @torch.no_grad()
    def step(self, closure=None):
        """One update; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict) -> None:
        state = self.state[p]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p), "slow": p.clone()}
        state["step"] += 1
        grad = p.grad
        if grad.ndim > 1:
            grad = grad - grad.mean(tuple(range(1, grad.ndim)), keepdim=True)
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] / (1 - beta1 ** state["step"])
        rectification = _rectification(state["step"], beta2)
        if rectification is None:
            p.add_(state["mean"], alpha=-rate)
        else:
            p.addcdiv_(state["mean"], state["square"].sqrt().add_(group["eps"]), value=-rate * rectification)
        if state["step"] % group["k"] == 0:
            state["slow"].lerp_(p, group["alpha"])
            p.copy_(state["slow"])


def _rectification(step: int, beta2: float) -> float | None:
    """RAdam's factor with Adam's correction of the second moment; None while the variance is not to be trusted."""
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length < RECTIFY_FROM:
        return None
    shrink = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return math.sqrt((1 - beta2**step) * shrink)
