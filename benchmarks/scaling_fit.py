"""Our fits beside published figures, and the coverage of intervals."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.laws.scaling_fit import main

if __name__ == "__main__":
    sys.exit(main())
