"""The command line of what comes after training: `supmim-scale eval` and `export`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from supmim_scale.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from supmim_scale.evaluate.request import Request
    from supmim_scale.evaluate.segment import SegmentSettings

_ROBUSTNESS = "imagenet-a, imagenet-r, imagenet-sketch, imagenet-v2 and a folder; real and its JSON"


def add_eval_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `eval`."""
    parser.add_argument(
        "what",
        help="a run's folder or weights, a timm folder or safetensors file, or a timm model's name",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="of the recipe: input.root=DIR data.reader=folder",
    )
    parser.add_argument("--weights", type=Path, help="of a run: a file instead of its last")
    parser.add_argument("--model", metavar="NAME", help="of a safetensors file: timm's name")
    parser.add_argument("--ranks", type=int, help="start this many processes on this machine")
    parser.add_argument("--out", type=Path, help="folder for results; default: the run's, evals/")
    parser.add_argument("--knn", action="store_true", help="k-NN and retrieval, mAP, recall@k")
    parser.add_argument("--knn-k", type=int, default=20, help="neighbours that vote")
    parser.add_argument("--knn-temperature", type=float, default=0.07, help="of their votes")
    parser.add_argument("--probe", action="store_true", help="linear probe on frozen features")
    parser.add_argument(
        "--probe-solver",
        choices=("lbfgs", "sgd"),
        default="lbfgs",
        help="a sweep over regularisation, or over learning rates",
    )
    parser.add_argument("--few-shot", action="store_true", help="1, 5 and 10 images a class")
    parser.add_argument("--calibration", action="store_true", help="expected calibration error")
    parser.add_argument(
        "--robustness",
        nargs=2,
        action="append",
        default=[],
        metavar=("KIND", "PATH"),
        help=_ROBUSTNESS,
    )
    parser.add_argument("--reconstructions", action="store_true", help="a picture, of runs")
    parser.add_argument(
        "--segment",
        type=Path,
        metavar="DIR",
        help="mIoU of a linear head; ADE20K's or Pascal VOC's layout",
    )
    parser.add_argument("--segment-finetune", action="store_true", help="train the encoder too")
    parser.add_argument("--segment-steps", type=int, default=2000, help="of its training")
    parser.add_argument("--segment-classes", type=int, help="default: the layout's, 150 or 21")
    parser.set_defaults(run=_eval)


def add_export_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    parser.add_argument("run_dir", type=Path, help="folder of a run")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--weights", type=Path, help="a weights file; default: the run's last")
    parser.add_argument("--raw", action="store_true", help="the last weights that are no average")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="resample positions to N pixels"
    )
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too, and check it")
    parser.set_defaults(run=_export)


def _eval(arguments: argparse.Namespace) -> int:
    if arguments.ranks is not None:
        return _launch(arguments)
    wanted = _wanted(arguments)

    from supmim_scale.evaluate.run import run_evaluation
    from supmim_scale.evaluate.subject import open_subject
    from supmim_scale.launch.join import join_world, leave_world

    world = join_world()
    subject = world.main_first(
        lambda: open_subject(
            arguments.what, arguments.weights, arguments.model, arguments.overrides
        )
    )
    run_evaluation(subject, wanted, world)
    leave_world(world)
    return EXIT_DONE


def _wanted(arguments: argparse.Namespace) -> "Request":
    """What the options ask for. Raises `UserError` for values out of range."""
    from supmim_scale.evaluate.knn import KnnSettings
    from supmim_scale.evaluate.request import Request
    from supmim_scale.evaluate.robustness import SETS

    for name in ("knn_k", "knn_temperature", "segment_steps", "segment_classes"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UserError("--" + name.replace("_", "-"), f"{value}", "above 0", "raise it")
    for kind, _ in arguments.robustness:
        if kind not in SETS:
            raise UserError("--robustness", f"'{kind}'", f"one of {', '.join(SETS)}", "choose one")
    return Request(
        knn=KnnSettings(arguments.knn_k, arguments.knn_temperature) if arguments.knn else None,
        probe=arguments.probe_solver if arguments.probe else None,
        few_shot=arguments.few_shot,
        calibration=arguments.calibration,
        robustness=[(kind, Path(path)) for kind, path in arguments.robustness],
        reconstructions=arguments.reconstructions,
        segment=_segmentation(arguments),
        out=arguments.out,
    )


def _segmentation(arguments: argparse.Namespace) -> "SegmentSettings | None":
    from supmim_scale.evaluate.segment import SegmentSettings

    if arguments.segment is None:
        return None
    return SegmentSettings(
        arguments.segment,
        arguments.segment_finetune,
        arguments.segment_steps,
        classes=arguments.segment_classes,
    )


def _launch(arguments: argparse.Namespace) -> int:
    """The same command on several ranks."""
    from supmim_scale.launch.local import launch

    if arguments.ranks < 1:
        raise UserError("--ranks", f"{arguments.ranks}", "1 or more", "raise it")
    return launch(arguments.ranks, _words(arguments))


def _words(arguments: argparse.Namespace) -> list[str]:
    """The command of one rank: every option that the parser has, but for the number of ranks."""
    parser = argparse.ArgumentParser()
    add_eval_command(parser)
    words = ["eval", arguments.what, *arguments.overrides]
    for action in parser._actions:
        value = getattr(arguments, action.dest, None)
        if not action.option_strings or action.dest == "ranks" or value in (None, False):
            continue
        option = action.option_strings[0]
        if action.nargs == 2:
            words += [word for pair in value for word in (option, *pair)]
        else:
            words += [option] if action.nargs == 0 else [option, str(value)]
    return words


def _export(arguments: argparse.Namespace) -> int:
    from supmim_scale.export.folder import ExportSettings, export_run

    settings = ExportSettings(
        arguments.weights, arguments.raw, arguments.image_size, arguments.onnx
    )
    for parity in export_run(arguments.run_dir, arguments.out, settings):
        print(parity)
    print(f"timm.create_model('local-dir:{arguments.out}', pretrained=True)")
    return EXIT_DONE
