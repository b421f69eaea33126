"""CUDA graphs: a function of tensors recorded once for a shape, then replayed as one launch.

At batch 1 a GPU waits for Python: HRNet's 1,500 kernels take it 3 ms, to launch them takes 40. A graph keeps
the kernels with the addresses they read and write, so inputs are copied in and outputs copied out.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
CAPTURED_AT = 2  # the call with the same shapes that records them: one question alone is not worth it
WARM_UP = 2  # calls on the side, for the libraries to choose their kernels and take their memory


class Graphed:
    """A function of a dict of tensors, replayed on a GPU where shapes come back.

    What it gives is its caller's own. Safe between threads: one call at a time.

    Args:
        function: tensors to tensors, the same operations whatever they hold, nothing read on the CPU.
        device: where it runs, and the inputs lie.
    """

    def __init__(self, function: Callable[[Tensors], Tensors], device: torch.device) -> None:
        self.function, self.device = function, device
        self.recorded: dict[tuple, _Recording] = {}
        self.calls: dict[tuple, int] = {}
        self.works = device.type == "cuda"
        self.lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, inputs: Tensors) -> Tensors:
        """The function's outputs, on the device."""
        shapes = tuple((name, tuple(x.shape), x.dtype) for name, x in inputs.items())
        with self.lock:
            if shapes not in self.recorded and self.works:
                self.calls[shapes] = self.calls.get(shapes, 0) + 1
                if self.calls[shapes] >= CAPTURED_AT:
                    self._record(shapes, inputs)
            if shapes in self.recorded:
                return self.recorded[shapes].replay(inputs)
            return self.function(inputs)

    def _record(self, shapes: tuple, inputs: Tensors) -> None:
        """Record the function for these shapes; from the first time that this fails on, none is recorded."""
        current = torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.stream(current):  # a failure in the midst of it would leave another one on
                self.recorded[shapes] = _Recording(self.function, inputs, self.device)
        except RuntimeError as error:  # an operation that waits for the GPU, or no memory left
            self.works = False
            warnings.warn(f"no CUDA graphs, each call is launched anew: {error}", stacklevel=4)


class _Recording:
    """One shape's graph with the tensors that it reads and writes."""

    def __init__(self, function: Callable[[Tensors], Tensors], inputs: Tensors, device: torch.device) -> None:
        self.inputs = {name: x.clone() for name, x in inputs.items()}
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(self.inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads of the program may use the GPU meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = function(self.inputs)

    def replay(self, inputs: Tensors) -> Tensors:
        torch._foreach_copy_(list(self.inputs.values()), [inputs[name] for name in self.inputs])
        self.graph.replay()
        return {name: x.clone() for name, x in self.outputs.items()}


def side_by_side(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """What two independent functions give. Where they are recorded, a GPU computes both at once.

    At batch 1 neither fills it. With gradients, batches are large, and one waits for the other as ever.
    """
    answering = torch.cuda.is_initialized() and not torch.is_grad_enabled()
    if not (answering and torch.cuda.is_current_stream_capturing()):
        return first(), second()
    stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        other = second()
    one = first()
    stream.wait_stream(side)
    return one, other
