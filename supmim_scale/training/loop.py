"""The training loop."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supmim_scale import randomness
from supmim_scale.build.data import skip_rule, view_settings
from supmim_scale.build.model import encoder_params, joint_shape, recipe_encoder
from supmim_scale.config import digest
from supmim_scale.data.loader import evaluation_batches
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.errors import UserError
from supmim_scale.evaluation.classify import evaluate
from supmim_scale.evaluation.subject import Subject
from supmim_scale.evaluation.while_training import NAMES, online_knn
from supmim_scale.launch.provenance import launched_by, peak_memory_bytes
from supmim_scale.launch.signals import Stopper
from supmim_scale.models.encoder import VisionTransformer
from supmim_scale.models.flops import step_flops
from supmim_scale.models.joint import JointOutput
from supmim_scale.models.masking import Masks
from supmim_scale.models.optim import lr_factor_at
from supmim_scale.models.pictures import reconstruction_grid
from supmim_scale.models.weights import load_encoder, save_weights
from supmim_scale.runs.log import RunLog
from supmim_scale.runs.weights import keep_best
from supmim_scale.training.build import Run
from supmim_scale.training.meters import StepClock, StepMeter
from supmim_scale.training.profile import Profile
from supmim_scale.units import si


def train(run: Run, stopper: Stopper) -> dict[str, float]:
    """Collective: take a run to its end, or until `stopper` is asked to stop; returns the final
    figures."""
    config, world, watch, steps_done = run.config, run.world, run.watch, run.began.steps_done
    log = RunLog(run.run_dir, run.num_steps, steps_done) if world.is_main else None
    meter, clock = StepMeter(world), StepClock(config.optim.global_batch)
    figures: dict[str, float] = {}
    _say_plan(run, log)
    if run.resumed:
        meter.resume(run.resumed.facts["meter_sums"])
    watch.begin(run.engine)

    while steps_done < run.num_steps:
        lr = _lr_at(run)
        for micro in range(run.accumulation):
            asked = time.perf_counter()
            batch = next(run.batches)
            clock.waited(time.perf_counter() - asked)
            arguments, masks = run.step_arguments(batch)
            torch.manual_seed(randomness.torch_seed(config.seed, steps_done, micro, world.rank))
            output = run.engine.forward_backward(*arguments)
            meter.add(output, batch.labels_BL)
            watch.saw(output, batch.ids_B)
        run.engine.apply(lr)
        clock.step_done()
        steps_done += 1
        is_last = steps_done == run.num_steps
        stops = world.any(stopper.is_asked)  # the hosts alone: no device is waited for
        _tell_skipped(run, watch.step(run.engine), steps_done, log)

        # Below this line the host waits for the device; above it `apply` does.
        if is_last or steps_done % config.log.every == 0:
            figures |= meter.read() | clock.read(run.num_steps - steps_done) | _state(run, lr)
            if log:
                log.steps(steps_done, figures)
            if watch.is_spike(figures["loss"]) and _rolls_back(run, figures, steps_done, log):
                steps_done = run.roll_back(steps_done)
                continue
        _tell_profile(run, run.profiler.step(steps_done, clock), steps_done, log)
        paused = time.perf_counter()
        if masks and log and (is_last or _is_due(config.log.images_every, steps_done)):
            _show(run, arguments[0], masks, output, steps_done, log)
        if _is_measured(run, steps_done) or _is_knn_due(run, steps_done):
            figures |= _evaluate(run, save_run_weights(run, steps_done), steps_done, log)
        elif _is_due(config.checkpoint.weights_every, steps_done):
            save_run_weights(run, steps_done)
        is_kept = steps_done == run.cooldown_at
        if is_last or stops or is_kept or _is_due(config.checkpoint.every, steps_done):
            run.save(steps_done, meter.state())
        run.saver.poll()
        clock.paused(time.perf_counter() - paused)
        watch.paused()
        if stops:
            break

    run.saver.finish()
    watch.end()
    if log:
        log.close()
    return figures | {"steps_done": steps_done, "mean_images_per_s": clock.mean_images_per_s}


def _tell_skipped(
    run: Run, found: dict[str, Any] | None, steps_done: int, log: RunLog | None
) -> None:
    """Log a skipped step with the keys of the samples in it."""
    if found is None or log is None:
        return
    for blame in found["non_finite"].values():
        blame["samples"] = [str(run.train_set.defect(i, "non-finite")) for i in blame["samples"]]
    log.event("skipped_step", steps_done, found)


def _tell_profile(run: Run, found: Profile | None, steps_done: int, log: RunLog | None) -> None:
    """What binds, and where the trace lies."""
    if found is not None and log is not None:
        folder = str(run.run_dir / "profile")
        log.event("profile", steps_done, {"binds": found.line, "folder": folder})


def _rolls_back(run: Run, figures: dict[str, float], steps_done: int, log: RunLog | None) -> bool:
    """Collective: what the recipe says about a loss that has jumped.

    Raises `UserError` where it says stop, or has rolled back often enough.
    """
    watch, loss = run.config.watch, figures["loss"]
    if log:
        log.event("spike", steps_done, {"loss": loss, "does": watch.on_spike})
    if watch.on_spike == "log":
        return False
    if watch.on_spike == "stop" or run.rollbacks >= watch.rollbacks:
        raise UserError(
            "loss",
            f"{loss:.4f} after step {steps_done}, more than {watch.spike_sigmas:g} robust "
            f"deviations above the last ones, after {run.rollbacks} rollbacks",
            "a loss that goes down",
            "look at the log, lower optim.lr, or start again from a checkpoint",
        )
    run.rollbacks += 1
    return True


def _show(
    run: Run, images_BCHW: Tensor, masks: Masks, output: JointOutput, steps_done: int, log: RunLog
) -> None:
    """The reconstruction grid of the batch in hand."""
    assert run.target is not None
    mean, std = run.config.data.mean, run.config.data.std
    grid = reconstruction_grid(images_BCHW, masks, output, run.target, mean, std)
    log.picture(steps_done, "reconstruction", grid, run.run_dir / "reconstruction.png")


def save_run_weights(run: Run, steps_done: int) -> Path:
    """Collective: write the weights, and their average beside them; returns the file to
    evaluate: the average if the recipe keeps one."""
    folder = run.run_dir / "weights"
    facts = {"steps_done": str(steps_done), "digest": digest(run.config)}
    facts["reader"] = run.position(steps_done).to_json()
    path = folder / f"step-{steps_done:08d}.safetensors"
    for ema in (False, True) if run.config.optim.ema_decay else (False,):
        weights = run.engine.named_weights(ema=ema)
        path = path.with_stem(path.stem + "-ema") if ema else path
        if run.world.is_main:
            save_weights(weights, path, facts | {"weights": "ema" if ema else "raw"})
    run.world.barrier()
    return path


def _evaluate(run: Run, weights: Path, steps_done: int, log: RunLog | None) -> dict[str, float]:
    """Collective: what is due of top-1 and k-NN, of saved weights in a plain timm model; the best
    are kept."""
    encoder, row = recipe_encoder(run.config), dict[str, float]()
    load_encoder(encoder, weights)
    if _is_measured(run, steps_done):
        row |= _measure_top1(run, encoder, steps_done, log)
    if _is_knn_due(run, steps_done):
        subject = Subject(run.run_dir.name, encoder, run.config, None, run.run_dir, {})
        count = run.config.log.knn_images
        knn = online_knn(subject, run.train_set, run.val_set, count, run.world)
        if log:
            log.knn(steps_done, knn)
        row |= {name: knn[name] for name in NAMES}
    best = run.config.log.best
    if log and best in row and keep_best(run.run_dir, weights, best, row[best], steps_done):
        log.say(f"best {best} so far: {row[best]:.2%}, kept as weights/best.safetensors")
    return {f"eval_{name}": value for name, value in row.items()}


def _is_measured(run: Run, steps_done: int) -> bool:
    """Whether top-1 is due after this step."""
    return steps_done == run.num_steps or _is_due(run.config.log.eval_every, steps_done)


def _is_knn_due(run: Run, steps_done: int) -> bool:
    """Whether k-NN is due after this step: on a schedule, and with one after the last."""
    every = run.config.log.knn_every
    return _is_due(every, steps_done) or (every > 0 and steps_done == run.num_steps)


def _measure_top1(
    run: Run, encoder: VisionTransformer, steps_done: int, log: RunLog | None
) -> dict[str, float]:
    """Collective: top-1 and top-5 of the held-out set."""
    listed = run.run_dir / "quarantine" / f"val-{run.world.rank:05d}.jsonl"
    batches = evaluation_batches(
        run.val_set,
        view_settings(run.config, run.world.device),
        batch=run.config.log.eval_batch,
        rank=run.world.rank,
        world_size=run.world.world_size,
        device=run.world.device,
        quarantine=Quarantine(skip_rule(run.config), len(run.val_set), listed),
    )
    row = evaluate(encoder, batches, run.world, len(run.val_set), run.precision)
    row["left_out"] = len(run.val_set) - row["images"]
    if log:
        log.evaluation(steps_done, row)
    return row


def _lr_at(run: Run) -> float:
    """Learning rate of the step in hand; a skipped step does not move the schedule on."""
    optim = run.config.optim
    return optim.lr * lr_factor_at(run.engine.applied_steps, run.num_steps, optim)


def _state(run: Run, lr: float) -> dict[str, float]:
    """Collective, waits: what the optimizer and the memory look like, and the bad samples met.

    Raises `RankError` if they are more than the recipe allows.
    """
    peak = torch.tensor([float(peak_memory_bytes())], device=run.world.device)
    bad_samples = 0
    if run.world.any(bool(run.quarantine.met)):
        bad_samples = len(set().union(*run.world.gather(run.quarantine.met)))
        run.quarantine.require_few(bad_samples)
    return {
        "lr": lr,
        "grad_norm": run.engine.grad_norm(),
        "skipped_steps": float(run.engine.skipped_steps),
        "bad_samples": bad_samples,
        **run.watch.slowest(),
        "peak_memory_bytes": run.world.max(peak).item(),
    }


def _is_due(every: int, steps_done: int) -> bool:
    return every > 0 and steps_done % every == 0


def _say_plan(run: Run, log: RunLog | None) -> None:
    """What is about to run, so that a wrong number is seen before it costs anything."""
    if log is None:
        return
    config, world, launched = run.config, run.world, launched_by()
    features = run.target.out_features if run.target else 0
    shape = joint_shape(config, features, run.micro_batch)
    flops = step_flops(
        shape, config.engine.activation_checkpointing, config.engine.checkpoint_every_k
    )
    log.start(
        run.began.steps_done,
        {
            "digest": digest(config),
            "encoder_params": encoder_params(config),
            "train_flops_per_image": flops.model,
            "global_batch": config.optim.global_batch,
            "attention": run.attention,
            "world_size": world.world_size,
            **launched,
        },
    )
    views = view_settings(config, world.device)
    engine = config.engine.ds_config if config.engine.kind == "deepspeed" else "plain PyTorch"
    sharding = " (one rank: nothing is sharded)" if world.world_size == 1 else ""
    log.say(
        f"{config.model.name}: width {shape.width}, depth {shape.depth},"
        f" {shape.num_patches} patches"
        f"  layout {config.mim.layout if run.target else 'supervised'}"
        f"  {si(flops.model, 'FLOP')} an image, {si(flops.recompute, 'FLOP')} recomputed"
    )
    if launched["job"]:
        log.say(f"job {launched['job']}, restart {launched['restart']}, on {launched['nodes']}")
    log.say(
        f"{world.world_size} ranks on {world.device.type} (started by {world.launcher})"
        f"  {engine}{sharding}  {run.precision}"
        f"  checkpointing {config.engine.activation_checkpointing}"
        f"  attention {run.attention}{'  compiled blocks' if config.engine.compile else ''}"
    )
    log.say(
        f"global batch {config.optim.global_batch} = {run.micro_batch} a rank"
        f" x {world.world_size} ranks x {run.accumulation} accumulated"
    )
    log.say(
        f"{len(run.train_set)} training images in {len(run.train_set.shards)} shards,"
        f" {len(run.val_set)} held out  decoded on {views.spec.decoder}"
        f"  {run.num_steps} steps into {run.run_dir}"
        + (f", resuming from {run.resumed.path.name}" if run.resumed else "")
    )
