"""DeepSpeed ZeRO: the only importer of deepspeed.

Workarounds here name what they work around; versions are DeepSpeed's.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.runtime import compiler
from deepspeed.utils import safe_get_full_fp32_param

from supmim_scale.engine.attention import attention_kernel
from supmim_scale.engine.ds_config import complete_ds_config
from supmim_scale.engine.ema import ShardEma
from supmim_scale.engine.settings import EngineSettings
from supmim_scale.engine.state import EMA, MOMENTS, WEIGHT, Counters, Piece, ReadValues, copied
from supmim_scale.errors import UserError
from supmim_scale.models.joint import JointModel, JointOutput
from supmim_scale.models.optim import largest_block, set_lr

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# 0.19: a CPU start compiles a shared-memory extension for half a minute; gloo does the work.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# 0.19 imports Muon at every start, which compiles it: inductor alone takes seconds to load.
_compile, compiler.compile = compiler.compile, lambda: lambda function: function
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402

compiler.compile = _compile
# torch 2.13 renames collectives that DeepSpeed 0.19 calls by their old names.
warnings.filterwarnings("ignore", r".*deprecated.*", FutureWarning, r"torch\.distributed")


class ZeroEngine:
    """A `JointModel` sharded by ZeRO-1, 2 or 3.

    The model comes in whole, in fp32, with its own initialisation: under `zero.Init` timm's
    initialisers see empty shards and give other statistics without a word.
    """

    def __init__(
        self, model: JointModel, optimizer: torch.optim.Optimizer, settings: EngineSettings
    ) -> None:
        assert settings.ds_config is not None
        self.ds_config = complete_ds_config(
            settings.ds_config,
            micro_batch=settings.micro_batch,
            accumulation=settings.accumulation,
            precision=settings.precision,
            policy=settings.policy,
            clip_grad_norm=settings.optim.clip_grad_norm,
            block_params=largest_block(model.block_lists()),
        )
        self._stage = self.ds_config["zero_optimization"]["stage"]
        if self._stage == 3:
            _gather_by_block(model)
        try:
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=self.ds_config
            )
        except (ValueError, deepspeed.DeepSpeedConfigError) as error:
            what = " ".join(str(error).split())[:300]
            raise UserError("DeepSpeed configuration", what, "its schema", "fix the file") from None
        if settings.policy == "selective":
            # An engine of this process without selective checkpointing leaves its linear behind.
            is_torchs = "deepspeed" not in torch.nn.functional.linear.__module__
            assert is_torchs, "selective checkpointing over DeepSpeed's in-place linear"
        self._is_micro_step_open = False
        self._attention = settings.attention
        if self._stage == 3:
            _gather_outer_parameters_with_root(model)
        shards = _master_shards(self._optimizer)
        self._ema = ShardEma(shards, settings.optim.ema_decay) if settings.optim.ema_decay else None

    @property
    def skipped_steps(self) -> int:
        """Steps that DeepSpeed threw away for a non-finite gradient."""
        return int(self._engine.skipped_steps)

    @property
    def applied_steps(self) -> int:
        """Steps that changed the weights; DeepSpeed's own counter includes skipped ones."""
        return int(self._engine.global_steps) - self.skipped_steps

    def forward_backward(self, *args: Any) -> JointOutput:
        """Collective: losses of one micro-batch; its gradient is added."""
        if self._is_micro_step_open:
            self._engine.step()  # DeepSpeed counts a micro-step here; no update before the last
        with attention_kernel(self._attention):
            output: JointOutput = self._engine(*args)
            self._engine.backward(output.loss)
        self._is_micro_step_open = True
        return output

    def apply(self, lr: float) -> None:
        """Collective: clip, update, average."""
        before = self.applied_steps
        set_lr(self._optimizer, lr)
        self._engine.step()
        self._is_micro_step_open = False
        if self._ema and self.applied_steps > before:
            self._ema.update(self.applied_steps)

    @property
    def reads_per_step(self) -> int:
        """DeepSpeed's norms, of each group and of all, and whether they are finite."""
        return 4 + len(self._optimizer.param_groups)

    def grad_norm(self) -> float:
        """Waits: global gradient norm before clipping, of the last step."""
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def named_weights(self, *, ema: bool) -> dict[str, Tensor]:
        """Collective, waits: whole fp32 weights on the CPU of rank 0; empty elsewhere."""
        if ema and self._ema:
            with self._ema.swapped_in():
                return self.named_weights(ema=False)
        weights = {}
        for name, param in self._engine.module.named_parameters():
            whole = safe_get_full_fp32_param(param)  # collective, a parameter at a time
            if self._engine.global_rank == 0:
                weights[name] = whole.detach().float().cpu().clone()
        return weights

    def counters(self) -> Counters:
        """Steps counted so far."""
        states = list(self._optimizer.optimizer.state.values())
        adam_steps = float(states[0]["step"]) if states and "step" in states[0] else 0.0
        return Counters(self.applied_steps, self.skipped_steps, adam_steps)

    def pieces(self) -> Iterator[Piece]:
        """Waits: copies of everything this rank owns of the training state."""
        for kind in (WEIGHT, *MOMENTS):
            yield from self._pieces(kind, kind)
        if self._ema:
            with self._ema.swapped_in():
                yield from self._pieces(WEIGHT, EMA)

    @torch.no_grad()
    def restore(self, read: ReadValues, counters: Counters) -> None:
        """Collective: take over a training state, from pieces of any number of ranks."""
        self._engine.global_steps = counters.applied_steps + counters.skipped_steps
        self._engine.skipped_steps = counters.skipped_steps
        self._engine.micro_steps = (
            self._engine.global_steps * self._engine.gradient_accumulation_steps()
        )
        _require_adam_state(self._optimizer, counters.adam_steps)
        if self._ema:
            self._fill(WEIGHT, EMA, read)
            self._ema.take_over()
        for kind in (WEIGHT, *MOMENTS):
            self._fill(kind, kind, read)
        _refresh_working_weights(self._optimizer)

    def _pieces(self, kind: str, name_of_kind: str) -> Iterator[Piece]:
        for name, param in self._engine.module.named_parameters():
            start, values = _owned(self._optimizer, param, kind, self._engine.global_rank)
            if values.numel():
                yield Piece(name, name_of_kind, start, copied(values))

    def _fill(self, kind: str, name_of_kind: str, read: ReadValues) -> None:
        for name, param in self._engine.module.named_parameters():
            start, values = _owned(self._optimizer, param, kind, self._engine.global_rank)
            if values.numel():
                values.copy_(read(name, name_of_kind, start, values.numel()))


def _owned(optimizer: Any, param: Any, kind: str, rank: int) -> tuple[int, Tensor]:
    """(start in the flattened parameter, this rank's fp32 values of it as a view).

    Read where the ZeRO optimizers of 0.19 keep them: DeepSpeed's accessors give copies under
    stage 3 and know no part of a parameter under stages 1 and 2.
    """
    if hasattr(param, "ds_id"):  # stage 3
        group, offset, padded = optimizer.grad_position[optimizer.get_param_id(param)]
        start = rank * padded
        count = max(0, min(padded, param.ds_numel - start))
    elif param._hp_mapping is None:  # stages 1 and 2, all of it another rank's
        return 0, torch.empty(0)
    else:
        mapping = param._hp_mapping
        group, offset = mapping.param_group_index, mapping.hp_fragment_address.start
        start, count = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
    flat = _master_shards(optimizer)[group]
    values: Tensor = flat if kind == WEIGHT else optimizer.optimizer.state[flat][kind]
    return start, values.view(-1).narrow(0, offset, count)


def _require_adam_state(optimizer: Any, adam_steps: float) -> None:
    """Make AdamW's state where its first step has not made it yet, and set its step."""
    for flat in _master_shards(optimizer):
        state = optimizer.optimizer.state[flat]
        for kind in MOMENTS:
            state.setdefault(kind, torch.zeros_like(flat))
        state["step"] = torch.tensor(adam_steps, dtype=torch.float32, device=flat.device)


def _refresh_working_weights(optimizer: Any) -> None:
    """Collective: what forward reads follows the fp32 masters, as after an update."""
    if hasattr(optimizer, "update_lp_params"):  # stages 1 and 2
        optimizer.update_lp_params()
        return
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def _gather_by_block(model: JointModel) -> None:
    """Gather a block's parameters with one all-gather where it is called, for all of its passes.

    Module by module, DeepSpeed's gathers would also run inside a block's recomputation: selective
    checkpointing then finds operations in it that forward did not have, and compiling breaks off
    at every hook.
    """
    for stack in model.block_lists():
        for block in stack:
            deepspeed.utils.set_z3_leaf_module(block, True)


def _gather_outer_parameters_with_root(model: JointModel) -> None:
    """Gather tokens and position embeddings with the root's forward.

    ZeRO-3 fetches a module's own parameters when that module is called. The encoder and the
    decoder hold some beside their children, and the joint forward reads them without calling
    `encoder.forward`; DeepSpeed calls these external parameters.
    """
    for name, module in model.named_modules():
        if name and any(True for _ in module.children()):
            for param in module.parameters(recurse=False):
                deepspeed.zero.register_external_parameter(model, param)


def _master_shards(optimizer: Any) -> list[Tensor]:
    """This rank's fp32 weights under the attribute each ZeRO optimizer of 0.19 keeps them in."""
    names = (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 with bf16
    )
    for name in names:
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    raise AssertionError(f"no master weights in {type(optimizer).__name__}: deepspeed changed")
