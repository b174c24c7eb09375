"""Seconds and memory that a plan takes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plans.plan_time import main

if __name__ == "__main__":
    sys.exit(main())
