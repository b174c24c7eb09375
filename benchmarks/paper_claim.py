"""Supervised beside supervised + MIM, with intervals."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claim.paper_claim import main

if __name__ == "__main__":
    sys.exit(main())
