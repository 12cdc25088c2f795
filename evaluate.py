r"""Evaluate saved weights.

python evaluate.py --cfg-path projects/pnp-vqa/eval/gqa_eval.yaml \\
    --options model.fusion_weights=PATH
"""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lavis_ext.config.loader import Config

try:
    from lavis_ext.common.errors import UserError, command
except ImportError as error:  # LAVIS is missing, or torch and torchvision do not match
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def _config(arguments: Namespace) -> "Config":
    """The config. Raises UserError if it lacks the weights that the model needs."""
    from lavis_ext.config.loader import Config
    from lavis_ext.registry import registry

    cfg = Config(arguments)
    model = registry.get_model_class(cfg.model.arch)
    key = model.weights_key
    if not getattr(cfg.model, key) and model.needs_weights(cfg.model):
        raise UserError(
            f"model.{key} is missing: give the file that training wrote, with "
            f"--options model.{key}=output/RUN/NAME_best.safetensors."
        )
    return cfg


@command
def main() -> None:
    """Evaluate the weights on the splits of the config."""
    from lavis_ext import distributed
    from lavis_ext.runners.launch import argument_parser, started

    arguments = argument_parser("Evaluate saved weights.").parse_args()
    with distributed.errors_once():
        cfg = _config(arguments)
    with started(cfg, [*cfg.run.validation, *cfg.run.testing]) as runner:
        runner.evaluate()


if __name__ == "__main__":
    main()
