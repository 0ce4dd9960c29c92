"""Runs the comparison; see the package."""

import sys

from tests.parity import main

if __name__ == "__main__":
    sys.exit(main())
