"""Tasks: data, evaluation and metrics of a run."""

from lavis_ext.tasks import gqa as gqa
from lavis_ext.tasks import gqa_pointing as gqa_pointing
from lavis_ext.tasks import vqa as vqa
