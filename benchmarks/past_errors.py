"""Collects how far predictions were off so far, for what `supmim-scale plan` says of itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plans.past_errors import main

if __name__ == "__main__":
    sys.exit(main())
