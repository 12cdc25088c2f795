"""The registered tasks."""

from lavis_ext.tasks import gqa_fusion as gqa_fusion
