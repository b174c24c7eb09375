"""Faults injected into real runs: what is lost, and whether losses stay the same."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.faults.resilience import main

if __name__ == "__main__":
    sys.exit(main())
