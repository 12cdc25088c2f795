"""What LAVIS's programs ask for: a task trains, evaluates and sums up."""

from lavis_ext.tasks import gqa_fusion as gqa_fusion
from lavis_ext.tasks import gqa_pointing as gqa_pointing
from lavis_ext.tasks import gqa_reading_comprehension_fusion as gqa_reading_comprehension_fusion
