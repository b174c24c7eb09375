"""The sets of one evaluation: opened before anything is measured, and their features."""

from functools import partial
from pathlib import Path

from torch import Tensor

from supmim_scale.build.data import open_split, require_same_classes, skip_rule
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.loader import evaluation_batches
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.errors import UserError
from supmim_scale.evaluation.features import Features, cached, extract, weights_digest
from supmim_scale.evaluation.knn import require_bank
from supmim_scale.evaluation.probe import require_enough
from supmim_scale.evaluation.request import Request
from supmim_scale.evaluation.results import FOLDER
from supmim_scale.evaluation.robustness import REAL, names_of, open_set, real_labels, relabelled
from supmim_scale.evaluation.subject import Subject
from supmim_scale.launch.world import World


class Sets:
    """Collective: the opened sets of a subject. Raises `UserError` on every rank for one that
    cannot be measured, before the first image is read.

    `digest`: of the subject's weights. `robust`: by the name of its figures, each with its kind.
    """

    def __init__(self, subject: Subject, wanted: Request, world: World, out: Path) -> None:
        config, self._subject, self._world, self._out = subject.config, subject, world, out
        self.held_out: Dataset = world.main_first(lambda: open_split(config, "val"))
        self.train: Dataset | None = None
        self.digest = weights_digest(subject.encoder)
        if wanted.needs_training_set:
            require_same_classes(config)
            self.train = world.main_first(lambda: open_split(config, "train"))
            _require_training_set(self.train, wanted)
        self.robust: dict[str, tuple[str, Dataset | Tensor]] = {
            name: (kind, world.main_first(partial(self._opened, kind, path)))
            for name, (kind, path) in names_of(wanted.robustness).items()
        }

    @property
    def largest_label(self) -> int:
        """The largest label of all classified images that were opened."""
        opened = [self.held_out, *([self.train] if self.train is not None else [])]
        return max(dataset.largest_label for dataset in opened)

    def features(self, dataset: Dataset, what: str) -> Features:
        """Collective: of a whole set; those of a training set are kept beside the results."""
        subject, world = self._subject, self._world
        settings = subject.view_settings(world.device)

        def make() -> Features:
            batches = evaluation_batches(
                dataset,
                settings,
                batch=subject.config.log.eval_batch,
                rank=world.rank,
                world_size=world.world_size,
                device=world.device,
                quarantine=Quarantine(skip_rule(subject.config), len(dataset)),
            )
            return extract(subject.features, batches, world, len(dataset), what)

        if dataset is not self.train:
            return make()
        key = {
            "weights": self.digest,
            "set": dataset.digest,
            "crop": settings.eval_crop,
            "spec": str(settings.spec),
            "views": str(subject.views),
            "device": world.device.type,
            "precision": subject.precision(world.device),
        }
        return cached(self._out / FOLDER, key, world, make)

    def robust_features(self, name: str, held_out: Features) -> Features:
        """Collective: a robustness set's features, with its labels."""
        kind, opened = self.robust[name]
        if isinstance(opened, Tensor):
            return relabelled(held_out, opened)
        return self.features(opened, kind)

    def _opened(self, kind: str, path: Path) -> Dataset | Tensor:
        if kind == REAL:
            return real_labels(path, self.held_out, self._subject.num_classes)
        return open_set(kind, path, self._subject.config)


def _require_training_set(train: Dataset, wanted: Request) -> None:
    if train.largest_label < 0:
        raise UserError(
            "data.train",
            "images without labels",
            "labels to learn from",
            "name another set with data.train",
        )
    if wanted.knn is not None:
        require_bank(len(train), wanted.knn.k)
    if wanted.probe is not None:
        require_enough(len(train))
