"""`python -m supmim_scale COMMAND`: the same entry point as the console script, for launchers."""

import sys

from supmim_scale.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
