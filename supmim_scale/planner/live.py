"""Bytes of live tensors, counted at every operation, on real tensors and on fake ones."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Sum of the sizes of all storages that were made inside and still live, and its peak.

    A storage counts once, however many tensors view it, from the operation that made it until its
    last reference is gone; workspaces inside a kernel are not seen. On a CPU this is the only
    measure that an allocator's caches and the libraries' pages do not blur.
    """

    def __init__(self, is_apart: Callable[[Tensor], bool] | None = None) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.apart = 0  # of `live`, storages that `is_apart` chose when they were made
        self._is_apart = is_apart
        self.operations = 0
        self._seen: dict[int, tuple[Any, int, int]] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Storages that were there before are not counted."""
        for tensor in tensors:
            self._watch(tensor, size=0, apart=0)

    def restart_peak(self) -> int:
        """The peak so far; the next one starts from what lives now."""
        peak, self.peak = self.peak, self.live
        return peak

    def storages(self) -> dict[int, tuple[int, bool]]:
        """Bytes of every storage that lives now, and whether it was set apart, by its `id`."""
        return {key: (size, apart > 0) for key, (_, size, apart) in self._seen.items() if size}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor) or leaf.is_meta:
                continue  # DeepSpeed keeps shapes as tensors of the meta device
            if id(leaf.untyped_storage()) not in self._seen:
                size = leaf.untyped_storage().nbytes()
                is_apart = self._is_apart is not None and self._is_apart(leaf)
                self._watch(leaf, size, size if is_apart else 0)
        self.operations += 1
        return result

    def _watch(self, tensor: Tensor, size: int, apart: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        self.live += size
        self.apart += apart
        self.peak = max(self.peak, self.live)

        def gone(_: Any) -> None:
            self.live -= size
            self.apart -= apart
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone), size, apart


def storages_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind `tensors`."""
    sizes = {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())


def is_logits_of(micro_batch: int, num_classes: int) -> Callable[[Tensor], bool]:
    """Whether a tensor has the shape of the class head's output."""
    shape = torch.Size((micro_batch, num_classes))
    return lambda tensor: tensor.shape == shape
