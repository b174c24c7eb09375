"""Tensors of the host on their way to the device."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for.

    From pageable memory CUDA may wait for the stream first (CUDA Runtime API, "API
    synchronization behavior"), for every tensor of every step.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
