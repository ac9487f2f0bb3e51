"""The recipe tests' tiny stages, for the commands too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))
