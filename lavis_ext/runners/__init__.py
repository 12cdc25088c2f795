"""What drives a run."""

from lavis_ext.runners import fusion_runner as fusion_runner
from lavis_ext.runners import schedule as schedule
