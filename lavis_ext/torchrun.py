"""torchrun with the run's own exit code, and an ending of one line instead of its traceback.

python -m lavis_ext.torchrun --nproc_per_node=2 train.py --cfg-path ...

Takes torchrun's arguments. After a signal it exits with 128 plus the signal's number, after an
error with the code of the process that failed first.
"""

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run torchrun."""
    try:
        run.main(arguments)
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        code = failure.exitcode
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        print(f"rank {rank} {how} first; its messages are above", file=sys.stderr)
        raise SystemExit(128 - code if code < 0 else code) from None


if __name__ == "__main__":
    main()
