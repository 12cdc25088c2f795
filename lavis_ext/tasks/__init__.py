"""Tasks: what is trained on and evaluated, by which metrics."""

from lavis_ext.tasks import gqa as gqa
from lavis_ext.tasks import gqa_pointing as gqa_pointing
