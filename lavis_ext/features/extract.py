"""Store the frozen encoders' output for a run's images.

python -m lavis_ext.features.extract --cfg-path train.yaml
torchrun --nproc_per_node=2 -m lavis_ext.features.extract --cfg-path ...

Uses the run's config. Completed shards survive an interruption.
"""

from lavis_ext import distributed
from lavis_ext.common.errors import command
from lavis_ext.config.loader import Config
from lavis_ext.features.config import FeaturesConfig
from lavis_ext.features.run_features import RunFeatures
from lavis_ext.runners.launch import argument_parser, prepared
from lavis_ext.runners.run_log import log


@command
def main() -> None:
    """Extract, verify or repair the feature stores of a run."""
    parser = argument_parser("Store the frozen encoders' output for a run's images.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--verify", action="store_true", help="read all shards, write nothing")
    what.add_argument("--rebuild", action="store_true", help="replace damaged shards")
    arguments = parser.parse_args()
    with distributed.errors_once():
        cfg = Config(arguments)
    with prepared(cfg, cfg.run.splits) as parts:
        config = cfg.run.features or FeaturesConfig()
        features = RunFeatures(config, parts.of_splits, parts.model)
        if arguments.verify:
            features.verify()
        else:
            features.make(parts.device, cfg.run.num_workers, rebuild=arguments.rebuild)
        for group in features.groups:
            for _, store in group.extraction.stores:
                log.info("%s: %s", ", ".join(group.splits), store.folder)


if __name__ == "__main__":
    main()
