"""Types of command line arguments."""

import argparse
from pathlib import Path


def path_argument(text: str) -> Path:
    """A path. An empty one is an error: for ``Path`` it is the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path")
    return Path(text)
