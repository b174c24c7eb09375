"""What the live bytes of a training step belong to: a census of storages by owner."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from supmim_scale.engine import Engine
from supmim_scale.planner.live import LiveBytes

STATES = ("parameters", "masters", "gradients", "optimizer", "ema", "gathered", "buckets")
KINDS = (*STATES, "activations", "logits", "inputs")
# Words in the names under which DeepSpeed 0.19's ZeRO optimizers keep tensors; the first that
# fits counts.
_ATTRIBUTES = (
    ("bucket", "buckets"),
    ("ipg", "buckets"),
    ("grad", "gradients"),
    ("fp32", "masters"),
    ("16", "parameters"),
)
_DEPTH = 4  # of containers inside containers


class Census(LiveBytes):
    """Live bytes by kind: at operations that are told beforehand, and at the fullest moment.

    A census at every new peak would take long; it is held at those above a `floor`, which the step
    before has told. What no owner claims is an activation, or a temporary of whatever runs.
    """

    def __init__(self, is_apart: Any = None) -> None:
        super().__init__(is_apart)
        self.floor = float("inf")  # bytes
        self.taken: dict[int, dict[str, int]] = {}
        self._at_peak: dict[str, int] | None = None
        self._peak_place = 0
        self._wanted: set[int] = set()
        self._first = 0
        self._owners: list[tuple[nn.Module, Engine, list[Tensor]]] = []

    def own(self, model: nn.Module, engine: Engine, inputs: list[Tensor]) -> None:
        """Whose tensors there are."""
        self._owners = [(model, engine, inputs)]

    def begin_step(self, wanted: Iterable[int] = ()) -> None:
        """Count operations anew; take the census after the `wanted` ones."""
        self._first, self._wanted, self.taken = self.operations, set(wanted), {}

    def read_peak(self) -> tuple[int, dict[str, int] | None]:
        """The peak since the last call and its kinds, where they were asked for."""
        peak, kinds = self.restart_peak(), self._at_peak
        if kinds is not None:
            self.taken[self._peak_place] = kinds
        self._at_peak = self.now() if self.live >= self.floor else None
        self._peak_place = self.place
        return peak, kinds

    @property
    def place(self) -> int:
        """Operations since the step began."""
        return self.operations - self._first

    def now(self) -> dict[str, int]:
        """Bytes of every kind that live now."""
        claimed = owners(*self._owners[0])
        found = dict.fromkeys(KINDS, 0)
        for key, (size, is_logits) in self.storages().items():
            found[claimed.get(key, "logits" if is_logits else "activations")] += size
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.peak
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.peak > before and self.peak >= self.floor:
            self._at_peak, self._peak_place = self.now(), self.place
        if self.place in self._wanted:
            self.taken[self.place] = self.now()
        return result


def owners(model: nn.Module, engine: Engine, inputs: Iterable[Tensor]) -> dict[int, str]:
    """The kind of every storage that somebody holds, by the storage's `id`."""
    found: dict[int, str] = {}

    def claim(kind: str, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                found.setdefault(id(tensor.untyped_storage()), kind)

    claim("inputs", inputs)
    optimizer: Any = engine._optimizer  # type: ignore[attr-defined]
    adam = getattr(optimizer, "optimizer", optimizer)
    claim("optimizer", tensors_in(list(adam.state.values())))
    average = engine._ema  # type: ignore[attr-defined]
    claim("ema", average.average if average else ())
    sharded = hasattr(optimizer, "optimizer")
    for param in model.parameters():
        claim("gradients", (param.grad,))
        if hasattr(param, "ds_tensor"):
            claim("parameters", (param.ds_tensor,))
            claim("gathered", (param.data,))
        else:
            claim("parameters", (param.data,))
    if sharded:
        for group in adam.param_groups:
            claim("gradients", (param.grad for param in group["params"]))
        for name, value in vars(optimizer).items():
            kind = next((kind for word, kind in _ATTRIBUTES if word in name.lower()), None)
            if kind:
                claim(kind, tensors_in(value))
        claim("masters", (param.data for group in adam.param_groups for param in group["params"]))
    return found


def tensors_in(value: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    """Tensors in nested containers, and in DeepSpeed's bucket objects."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from tensors_in(inner, depth - 1)
    elif depth and "Bucket" in type(value).__name__:
        yield from tensors_in(vars(value), depth - 1)
