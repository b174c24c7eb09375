"""The reference engine: one process, only PyTorch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from supmim_scale.engine.activation_checkpointing import autocast_bf16
from supmim_scale.engine.attention import attention_kernel
from supmim_scale.engine.ema import ShardEma
from supmim_scale.engine.settings import EngineSettings
from supmim_scale.engine.state import EMA, MOMENTS, WEIGHT, Counters, Piece, ReadValues, copied
from supmim_scale.models.joint import JointModel, JointOutput
from supmim_scale.models.optim import set_lr


class PlainEngine:
    """fp32 parameters, autocast for bf16, gradient accumulation by summed micro-batches."""

    def __init__(
        self, model: JointModel, optimizer: torch.optim.Optimizer, settings: EngineSettings
    ) -> None:
        self.applied_steps = 0
        self.skipped_steps = 0
        self._model, self._optimizer, self._settings = model.train(), optimizer, settings
        self._grad_norm = torch.tensor(float("nan"))
        params = [p for p in model.parameters() if p.requires_grad]
        self._params = params
        self._ema = ShardEma(params, settings.optim.ema_decay) if settings.optim.ema_decay else None

    def forward_backward(self, *args: Any) -> JointOutput:
        """Losses of one micro-batch; its gradient is added."""
        device = next(self._model.parameters()).device.type
        is_bf16 = self._settings.precision == "bf16"
        with attention_kernel(self._settings.attention):
            with autocast_bf16(device, self._settings.policy, enabled=is_bf16):
                output: JointOutput = self._model(*args)
            (output.loss / self._settings.accumulation).backward()
        return output

    def apply(self, lr: float) -> None:
        """Clip, update, average; a step with a non-finite gradient is skipped and counted."""
        limit = self._settings.optim.clip_grad_norm or float("inf")
        self._grad_norm = torch.nn.utils.clip_grad_norm_(self._params, limit)
        if bool(self._grad_norm.isfinite()):
            set_lr(self._optimizer, lr)
            self._optimizer.step()
            self.applied_steps += 1
            if self._ema:
                self._ema.update(self.applied_steps)
        else:
            self.skipped_steps += 1
        self._optimizer.zero_grad()

    @property
    def reads_per_step(self) -> int:
        """Whether the gradient is finite."""
        return 1

    def grad_norm(self) -> float:
        """Waits: gradient norm before clipping, of the last step."""
        return float(self._grad_norm)

    def named_weights(self, *, ema: bool) -> dict[str, Tensor]:
        """Whole weights on the CPU."""
        if ema and self._ema:
            with self._ema.swapped_in():
                return self.named_weights(ema=False)
        return {n: p.detach().float().cpu().clone() for n, p in self._model.named_parameters()}

    def counters(self) -> Counters:
        """Steps counted so far."""
        states = list(self._optimizer.state.values())
        adam_steps = float(states[0]["step"]) if states else 0.0
        return Counters(self.applied_steps, self.skipped_steps, adam_steps)

    def pieces(self) -> Iterator[Piece]:
        """Copies of the whole training state."""
        for place, (name, param) in enumerate(self._model.named_parameters()):
            for kind, values in self._values(place, param).items():
                yield Piece(name, kind, 0, copied(values))

    @torch.no_grad()
    def restore(self, read: ReadValues, counters: Counters) -> None:
        """Take over a training state."""
        self.applied_steps, self.skipped_steps = counters.applied_steps, counters.skipped_steps
        for place, (name, param) in enumerate(self._model.named_parameters()):
            state = self._optimizer.state[param]
            state["step"] = torch.tensor(
                counters.adam_steps, dtype=torch.float32, device=param.device
            )
            for kind in MOMENTS:
                state[kind] = torch.zeros_like(param)
            for kind, values in self._values(place, param).items():
                values.copy_(read(name, kind, 0, param.numel()).view_as(param))

    def _values(self, place: int, param: Tensor) -> dict[str, Tensor]:
        state = self._optimizer.state.get(param, {})
        averages = {EMA: self._ema.average[place]} if self._ema else {}
        moments = {kind: state.get(kind, torch.zeros_like(param)) for kind in MOMENTS}
        return {WEIGHT: param, **moments, **averages}
