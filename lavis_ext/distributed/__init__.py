"""Process group, peers and watchdog of distributed training."""

from lavis_ext.distributed.process_group import at as at
from lavis_ext.distributed.process_group import barrier as barrier
from lavis_ext.distributed.process_group import broadcast as broadcast
from lavis_ext.distributed.process_group import choose_device as choose_device
from lavis_ext.distributed.process_group import errors_once as errors_once
from lavis_ext.distributed.process_group import from_main_process as from_main_process
from lavis_ext.distributed.process_group import from_shared_file as from_shared_file
from lavis_ext.distributed.process_group import gather as gather
from lavis_ext.distributed.process_group import greatest as greatest
from lavis_ext.distributed.process_group import is_broken as is_broken
from lavis_ext.distributed.process_group import is_main_process as is_main_process
from lavis_ext.distributed.process_group import local_rank as local_rank
from lavis_ext.distributed.process_group import local_world_size as local_world_size
from lavis_ext.distributed.process_group import main_process_first as main_process_first
from lavis_ext.distributed.process_group import process_group as process_group
from lavis_ext.distributed.process_group import rank as rank
from lavis_ext.distributed.process_group import standings as standings
from lavis_ext.distributed.process_group import sum_over_processes as sum_over_processes
from lavis_ext.distributed.process_group import world_size as world_size
