"""Train a model.

python train.py --cfg-path projects/pnp-vqa/train/gqa_small.yaml
torchrun --nproc_per_node=2 train.py --cfg-path projects/pnp-vqa/train/gqa_train.yaml
"""

import sys
from argparse import Namespace

try:
    from lavis_ext.common.errors import command
except ImportError as error:  # LAVIS is missing, or torch and torchvision do not match
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def parse_arguments() -> Namespace:
    """Parse the command line."""
    from lavis_ext.runners.launch import argument_parser

    parser = argument_parser("Train a model.")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, the plan and its cost, measured on a few steps, then stop",
    )
    return parser.parse_args()


@command
def main() -> None:
    """Train a model, or describe the run with ``--dry-run``."""
    from lavis_ext import distributed
    from lavis_ext.config.loader import Config
    from lavis_ext.runners.dry_run import describe
    from lavis_ext.runners.launch import started

    arguments = parse_arguments()
    with distributed.errors_once():
        cfg = Config(arguments)
    if arguments.dry_run:
        describe(cfg, cfg.run.splits)
        return
    with started(cfg, cfg.run.splits) as runner:
        runner.train()


if __name__ == "__main__":
    main()
