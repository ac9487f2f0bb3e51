"""`python -m wenfang` is the command `wenfang`."""

import sys

from wenfang.cli import main

if __name__ == "__main__":
    sys.exit(main())
