"""Where in the data a run stands: what a checkpoint keeps of the reader, and what it checks."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from supmim_scale.errors import UserError


@dataclass(frozen=True)
class ReaderPosition:
    """`samples_seen` over all ranks since the run began, of the set that `digest` names.

    That is all: order, crops, augmentation and masks are functions of it. A run resumes from it
    with any number of ranks, and with another global batch.
    """

    samples_seen: int
    num_samples: int
    digest: str

    def to_json(self) -> str:
        """As text for a checkpoint's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, facts: Any) -> "ReaderPosition":
        """The position that a checkpoint holds. Raises `UserError` where it holds none."""
        try:
            position = cls(**facts)
            if position.samples_seen < 0:
                raise ValueError("before the first sample")
        except (ValueError, TypeError) as error:
            raise UserError(
                "reader position",
                f"{str(facts)[:80]} ({error})",
                "what a checkpoint wrote",
                "take another checkpoint",
            ) from None
        return position

    def require_same_set(self, num_samples: int, digest: str) -> None:
        """Raise `UserError` unless the set is the one this position counts in: in another, some
        samples of the epoch would come twice and others never."""
        if (num_samples, digest) != (self.num_samples, self.digest):
            raise UserError(
                "data.train",
                f"{num_samples} samples, digest {digest}",
                f"the {self.num_samples} of digest {self.digest} that the run began with",
                "restore the data set, or start a new run from the weights",
            )
