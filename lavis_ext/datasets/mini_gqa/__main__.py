"""``python -m lavis_ext.datasets.mini_gqa OUT --images 4000 --seed 0``."""

import argparse
import logging
from collections.abc import Sequence

from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import command
from lavis_ext.datasets.mini_gqa.vocabulary import SHAPES, WORLDS
from lavis_ext.datasets.mini_gqa.writer import make_mini_gqa


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write a mini-GQA data set and print a summary."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.datasets.mini_gqa",
        description="Draw synthetic scenes with questions, in the formats of the GQA download.",
    )
    parser.add_argument(
        "out", type=path_argument, help="folder to write; it must be absent or empty"
    )
    parser.add_argument("--images", type=int, default=4000, help="number of scenes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (%(default)s)")
    parser.add_argument(
        "--image-size", type=int, help="side of an image in pixels (the world's: 128 or 256)"
    )
    parser.add_argument(
        "--world",
        choices=tuple(WORLDS),
        default=SHAPES.name,
        help="shapes to tell apart at 128 pixels, or fine parts at 256 (%(default)s)",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    summary = make_mini_gqa(
        options.out,
        images=options.images,
        seed=options.seed,
        image_size=options.image_size,
        world=options.world,
    )
    if summary.created:
        print(f"Wrote {summary.out}.")
    else:
        print(f"{summary.out} is complete already; it was left as it is.")
    for split, counts in summary.counts.items():
        print(f"{split}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
