"""Training and evaluation of any registered model."""

from lavis_ext.runners import schedule as schedule
from lavis_ext.runners import trainer as trainer
