"""The section ``run.features``."""

from dataclasses import dataclass

from lavis_ext.config.schema import option
from lavis_ext.features.precision import DTYPES


@dataclass
class FeaturesConfig:
    """Options of stored features, which replace images and encoders."""

    root: str | None = option(
        None,
        "Folder of the feature stores, visible to all processes; by default beside the images. "
        "With several image folders, each gets a subfolder. Also an address of finished stores "
        "(s3://, ...), which are copied once.",
    )
    cache: str | None = option(
        None,
        "Folder of the copies of stores at an address; by default lavis_ext/features in "
        "XDG_CACHE_HOME or ~/.cache.",
        may_change=True,
    )
    make: bool = option(False, "Extract missing features first.")
    dtype: str = option(
        "bf16",
        "Data type of the stored tokens; int8 adds a scale per token.",
        choices=tuple(DTYPES),
    )
    pooling: int = option(
        1, "Average the tokens of squares with this side in patches; 1 keeps all.", at_least=1
    )
    views: int = option(
        1,
        "Stored views of each training image, one used per epoch; more than one needs a random "
        "vis_processor.train.",
        at_least=1,
    )
    images_per_shard: int = option(256, "Images per file.", at_least=1)
    batch_size: int = option(32, "Views per encoder batch of a process.", at_least=1)
    token_dropout: float = option(
        0.0, "Share of patch tokens set to 0 in training.", at_least=0, at_most=1
    )
    noise: float = option(
        0.0,
        "Standard deviation of the training noise, relative to the token's root mean square.",
        at_least=0,
    )
