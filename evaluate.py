r"""Evaluate saved fusion weights.

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
    """Report the figures of the weights on the splits of the config."""
    from lavis_ext.config.loader import Config
    from lavis_ext.runners.launch import argument_parser, started

    cfg = Config(argument_parser("Evaluate saved fusion weights.").parse_args())
    if not cfg.model.fusion_weights:
        raise UserError(
            "model.fusion_weights is missing: give the file that training wrote, with "
            "--options model.fusion_weights=output/RUN/fusion_encoder_best.safetensors."
        )
    with started(cfg, [*cfg.run.valid_splits, *cfg.run.test_splits]) as runner:
        runner.evaluate()


if __name__ == "__main__":
    main()
