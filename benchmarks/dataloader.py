"""Images/s of every reader beside other loaders, and what binds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.input.dataloader import main

if __name__ == "__main__":
    sys.exit(main())
