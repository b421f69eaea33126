"""What makes a step quick whatever is learned: the precision, the talk between GPUs, a recorded encoder."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    parse_flag_from_env,
)
from torch import Tensor, nn

from vg_utils.config import Config, ConfigError, TrainConfig
from vg_utils.models.base import EndToEnd, Features, GroundingModel
from vg_utils.models.precision import DTYPES, best_precision


def make_accelerator(train: TrainConfig, run_dir: Path) -> Accelerator:
    """Accelerate's, in the precision that the settings ask for or that suits the machine."""
    precision = train.precision
    if precision == "auto":  # fp16 brings Accelerate's gradient scaler with it
        # Not asked of a PartialState: one that is made before the Accelerator overlooks this variable.
        precision = best_precision("cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else "cuda")
    between = DistributedDataParallelKwargs(
        # BatchNorm's statistics are each process's own, and only the first's are ever saved: sent at every
        # step, hundreds of them, they change nothing.
        broadcast_buffers=False,
        gradient_as_bucket_view=True,  # summed where they lie
        # Half the bytes, and the numbers that the gradients were computed in.
        comm_hook=DDPCommunicationHookType.BF16 if precision == "bf16" else DDPCommunicationHookType.NO,
    )
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=train.accumulation,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[between],
        log_with=None if train.log == "no" else train.log,
        project_dir=run_dir,
    )


class RecordedImages(EndToEnd):
    """`EndToEnd` whose image encoder, forward and backward, is a CUDA graph for batches of one size.

    Launching the some thousand kernels of an image encoder takes Python longer than they take a GPU. The
    numbers are the same. Batches of other sizes, and evaluation, are encoded as ever.

    Attributes:
        recorded_for: shape and type of those batches; None before `record`.
    """

    recorded_for: tuple[torch.Size, torch.dtype] | None = None

    def record(self, images: Tensor, dtype: torch.dtype) -> float:
        """Record batches like these (B, 3, S, S), under autocast to a type (float32: without it).

        Gradients lie in the graph's own memory from one step to the next: no accumulation over steps.

        Returns:
            the seconds that it took.
        """
        # Gradients come from the graph's stream and are added in the program's, which waits as it should.
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        started = time.perf_counter()
        statistics = [buffer.clone() for buffer in self.model.buffers()]  # warming up would change them
        self.model.train()
        branch = _Branch(self.model)
        with torch.autocast(images.device.type, dtype, dtype != torch.float32, cache_enabled=False):
            learns = any(output.requires_grad for output in branch(images[:1]))  # and names the outputs
            encode = branch if learns else branch.forward  # a module's outputs would seem to learn
            recorded = torch.cuda.make_graphed_callables(encode, (images,), allow_unused_input=True)
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(value)
        self.recorded, self.names = recorded.forward if learns else recorded, branch.names
        self.recorded_for = images.shape, images.dtype
        return time.perf_counter() - started

    def forward(self, images: Tensor | Features, texts: Tensor | Features, image_index: Tensor) -> Features:
        """See `GroundingModel.predict`."""
        plain = isinstance(images, Tensor) and self.model.training
        if plain and (images.shape, images.dtype) == self.recorded_for:
            images = dict(zip(self.names, self.recorded(images), strict=True))
        return super().forward(images, texts, image_index)


def check_graphs(train: TrainConfig, device: torch.device) -> None:
    """Raise a ConfigError if `record` is asked for where it cannot be, or could not be trained on."""
    hindrances = {
        "a processor": device.type != "cuda",
        "train.cached": train.cached,
        "train.compile": train.compile,
        "train.accumulation above 1": train.accumulation > 1,
    }
    for hindrance, there in hindrances.items():
        if train.graphs and there:
            raise ConfigError(f"train.graphs: expected a GPU that encodes images anew, not {hindrance}")


def record(network: RecordedImages, config: Config, accelerator: Accelerator) -> float:
    """Record the batches that a training will have; returns the seconds that it took."""
    kind = torch.float32 if config.data.resident else torch.uint8  # augmented on the device, or read
    shape = (config.train.batch_images, 3, config.model.image_size, config.model.image_size)
    images = torch.zeros(shape, dtype=kind, device=accelerator.device)
    return network.record(images, DTYPES[accelerator.mixed_precision])


class _Branch(nn.Module):
    """A model's `encode_images` as a module with a tuple of tensors, which is what torch records."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model
        self.names: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.model.encode_images(images)
        self.names = tuple(features)
        return tuple(features.values())
