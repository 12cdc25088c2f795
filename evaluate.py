r"""Evaluate saved weights.

python evaluate.py --cfg-path projects/pnp-vqa/eval/gqa_eval.yaml \\
    --options model.fusion_weights=PATH
"""

import sys

try:
    from lavis_ext.common.errors import UserError, command
except ImportError as error:  # LAVIS is missing, or torch and torchvision do not match
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None


@command
def main() -> None:
    """Report the metrics of the weights on the splits of the config."""
    from lavis_ext.config.loader import Config
    from lavis_ext.registry import registry
    from lavis_ext.runners.launch import argument_parser, started

    cfg = Config(argument_parser("Evaluate saved weights.").parse_args())
    key = registry.get_model_class(cfg.model.arch).weights_key
    if not getattr(cfg.model, key):
        raise UserError(
            f"model.{key} is missing: give the file that training wrote, with "
            f"--options model.{key}=output/RUN/NAME_best.safetensors."
        )
    with started(cfg, [*cfg.run.validation, *cfg.run.testing]) as runner:
        runner.evaluate()


if __name__ == "__main__":
    main()
