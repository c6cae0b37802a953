"""Training steps replayed as CUDA graphs: thousands of small kernels, whose launches take longer than they do."""

from collections.abc import Callable

import torch
from torch import Tensor

EAGER = 3  # calls before the capture: they choose cuDNN's algorithms and make the optimiser's state


class Replayed:
    """A function of tensors that returns named tensors; on CUDA captured once and then replayed as one graph.

    cuda: whether to; else it is just called. The function may change tensors in place (weights, gradients, the state of
    an optimiser with `capturable`) and draw random numbers on the device, but neither looks at values nor changes the
    shapes of anything. What it returned is overwritten by the next call.
    """

    def __init__(self, function: Callable[..., dict[str, Tensor]], cuda: bool):
        self.function, self.cuda, self.calls, self.graph = function, cuda, 0, None

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        if not self.cuda:
            return self.function(*inputs)
        if self.calls <= EAGER:
            return self._aside(*inputs)
        if self.graph is None:
            self.inputs, self.graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = self.function(*self.inputs)
        for kept, x in zip(self.inputs, inputs, strict=True):
            kept.copy_(x)
        self.graph.replay()
        return self.outputs

    def _aside(self, *inputs: Tensor) -> dict[str, Tensor]:
        """On a stream of its own, as PyTorch asks of what is captured later."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs
