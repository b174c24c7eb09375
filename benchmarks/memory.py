"""Peak memory of a step by phase and kind, beside what the planner says."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bytes.memory import main

if __name__ == "__main__":
    sys.exit(main())
