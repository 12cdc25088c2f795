"""The section ``run.features``."""

from dataclasses import dataclass

from lavis_ext.config.schema import option
from lavis_ext.features.precision import DTYPES


@dataclass
class FeaturesConfig:
    """Stored features in place of images and encoders."""

    root: str | None = option(
        None,
        "Folder of the stores, seen by all processes; by default beside the images.",
    )
    make: bool = option(False, "Make what the stores lack, then go on.")
    dtype: str = option(
        "bf16", "Numbers of the tokens; int8 has a scale per token.", choices=tuple(DTYPES)
    )
    pooling: int = option(
        1, "Side in patches of the squares whose tokens are averaged; 1 keeps all.", at_least=1
    )
    views: int = option(
        1,
        "Stored views of each training image, one of them used an epoch; vis_processor.train must "
        "draw at random for more than one.",
        at_least=1,
    )
    images_per_shard: int = option(256, "Images a file.", at_least=1)
    batch_size: int = option(32, "Views that a process encodes at once.", at_least=1)
    token_dropout: float = option(
        0.0, "Share of patch tokens set to 0 in training.", at_least=0, at_most=1
    )
    noise: float = option(
        0.0,
        "Standard deviation of noise added in training, in root mean squares of the token.",
        at_least=0,
    )
