"""Training and evaluation of any registered model."""

from lavis_ext.runners import trainer as trainer
