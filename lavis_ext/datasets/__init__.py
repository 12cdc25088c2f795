"""Data sets: from records and pictures to batches. Each folder is one format or data set."""

from lavis_ext.datasets.gqa import builder as gqa_builder
from lavis_ext.datasets.vqa import builder as vqa_builder

__all__ = ["gqa_builder", "vqa_builder"]
