"""The task ``pretraining``."""

from lavis_ext.registry import registry
from lavis_ext.tasks.base import Splits, Task


@registry.register_task("pretraining")
class PretrainingTask(Task):
    """Trains parts of the miniature and reports the model's own metrics."""

    splits = Splits(train=("train",), valid=("val",), test=("testdev",))
    takes_features = False
