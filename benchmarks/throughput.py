"""Training steps: images/s, MFU and memory, beside what you would run without us."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed.throughput import main

if __name__ == "__main__":
    sys.exit(main())
