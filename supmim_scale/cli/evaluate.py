"""`supmim-scale eval` and `export`: what comes after training."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from supmim_scale.cli.arguments import require_ranks
from supmim_scale.errors import EXIT_DONE

if TYPE_CHECKING:
    from supmim_scale.evaluation.request import Request

_ROBUSTNESS = (
    "imagenet-a, imagenet-r, imagenet-sketch, imagenet-v2 with a folder; real with its JSON"
)


def add_eval_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `eval`."""
    parser.add_argument(
        "what",
        help="a run folder or weights file, a timm folder, safetensors file or timm model name",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="recipe overrides, such as input.root=DIR data.reader=folder",
    )
    parser.add_argument(
        "--weights", type=Path, help="for a run: this file instead of the latest weights"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="for a safetensors file: its timm model name"
    )
    parser.add_argument("--ranks", type=int, help="start this many processes on this machine")
    parser.add_argument(
        "--out", type=Path, help="folder for results; default: the run's, or evals/NAME"
    )
    parser.add_argument(
        "--knn", action="store_true", help="k-NN accuracy and retrieval: mAP, recall@k"
    )
    parser.add_argument("--knn-k", type=int, default=20, help="number of neighbours that vote")
    parser.add_argument(
        "--knn-temperature", type=float, default=0.07, help="temperature of the votes"
    )
    parser.add_argument("--probe", action="store_true", help="linear probe on frozen features")
    parser.add_argument(
        "--probe-solver",
        choices=("lbfgs", "sgd"),
        default="lbfgs",
        help="lbfgs sweeps regularisation, sgd learning rates",
    )
    parser.add_argument(
        "--few-shot", action="store_true", help="ridge regression on 1, 5 and 10 images per class"
    )
    parser.add_argument("--calibration", action="store_true", help="expected calibration error")
    parser.add_argument(
        "--robustness",
        nargs=2,
        action="append",
        default=[],
        metavar=("KIND", "PATH"),
        help=_ROBUSTNESS,
    )
    parser.add_argument(
        "--reconstructions", action="store_true", help="a picture of reconstructions; runs only"
    )
    parser.add_argument(
        "--segment",
        type=Path,
        metavar="DIR",
        help="mIoU of a linear head, on a set in ADE20K or Pascal VOC layout",
    )
    parser.add_argument("--segment-finetune", action="store_true", help="also train the encoder")
    parser.add_argument(
        "--segment-steps", type=int, default=2000, help="training steps of the head"
    )
    parser.add_argument(
        "--segment-classes", type=int, help="number of classes; default: the layout's, 150 or 21"
    )
    parser.set_defaults(run=_eval)


def add_export_command(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    parser.add_argument("run_dir", type=Path, help="run folder")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument(
        "--weights", type=Path, help="a weights file; default: the latest of the run"
    )
    parser.add_argument(
        "--raw", action="store_true", help="the latest raw weights instead of the moving average"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="resample position embeddings to N pixels"
    )
    parser.add_argument("--onnx", action="store_true", help="also write and check model.onnx")
    parser.set_defaults(run=_export)


def _eval(arguments: argparse.Namespace) -> int:
    if arguments.ranks is not None:
        return _launch(arguments)
    from supmim_scale.evaluation.start import evaluate_here

    figures = evaluate_here(
        arguments.what,
        _request(arguments),
        overrides=arguments.overrides,
        weights=arguments.weights,
        model=arguments.model,
    )
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(figures), flush=True)
    return EXIT_DONE


def _request(arguments: argparse.Namespace) -> "Request":
    """The evaluation the options ask for. Raises `UserError` for values out of range."""
    from supmim_scale.evaluation.knn import KnnSettings
    from supmim_scale.evaluation.request import Request
    from supmim_scale.evaluation.segment import SegmentSettings

    knn = KnnSettings(arguments.knn_k, arguments.knn_temperature)
    segment = None
    if arguments.segment is not None:
        segment = SegmentSettings(
            arguments.segment,
            arguments.segment_finetune,
            arguments.segment_steps,
            classes=arguments.segment_classes,
        )
    return Request(
        knn=knn if arguments.knn else None,
        probe=arguments.probe_solver if arguments.probe else None,
        few_shot=arguments.few_shot,
        calibration=arguments.calibration,
        robustness=[(kind, Path(path)) for kind, path in arguments.robustness],
        reconstructions=arguments.reconstructions,
        segment=segment,
        out=arguments.out,
    )


def _launch(arguments: argparse.Namespace) -> int:
    """The same command on several ranks."""
    from supmim_scale.launch.local import launch

    return launch(require_ranks(arguments.ranks), _words(arguments))


def _words(arguments: argparse.Namespace) -> list[str]:
    """The command of one rank: every option of the parser except the number of ranks."""
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
    from supmim_scale.exports.folder import export_run

    parities = export_run(
        arguments.run_dir,
        arguments.out,
        weights=arguments.weights,
        raw=arguments.raw,
        image_size=arguments.image_size,
        onnx=arguments.onnx,
    )
    for parity in parities:
        print(parity)
    print(f"timm.create_model('local-dir:{arguments.out}', pretrained=True)")
    return EXIT_DONE
