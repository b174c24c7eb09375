"""The MFU that a model's own matrix products allow."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed.shapes import main

if __name__ == "__main__":
    sys.exit(main())
