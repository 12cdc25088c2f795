"""Writer of the TensorBoard file of ``run.tensorboard``.

Records are written with TensorBoard's ``RecordWriter``; only the file handling is our own. torch's
``SummaryWriter`` doesn't recover from an error: with a disk that is full from step 2 to 4 of 9, it
raises OSError at every step from 2 on, and its file has step 1 only. Here records are kept until
they can be written, and the file has all 9.
"""

import io
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import Appended


class TensorboardFile:
    """Writes scalars for TensorBoard, and keeps them in memory while the disk is full.

    Args:
        folder: folder of the file.
        purge: TensorBoard discards scalars of this step and later in older files.

    Raises UserError if TensorBoard isn't installed, OSError if the file can't be created.
    """

    def __init__(self, folder: Path, purge: int) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise UserError(
                "run.tensorboard: TensorBoard isn't installed; run `pip install tensorboard`, or "
                "set run.tensorboard=false."
            ) from None
        self._events, self._summaries, self._records = event_pb2, summary_pb2, RecordWriter
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appended(folder / name)
        self._append(file_version="brain.Event:2")
        self._append(step=purge, session_log=event_pb2.SessionLog(status="START"))

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the scalars of a step by name."""
        values = [
            self._summaries.Summary.Value(tag=name, simple_value=value)
            for name, value in numbers.items()
        ]
        self._append(step=step, summary=self._summaries.Summary(value=values))

    def flush(self) -> None:
        """Write pending records. Raises OSError on failure; they are kept."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, **event: Any) -> None:
        content = self._events.Event(wall_time=time.time(), **event).SerializeToString()
        record = io.BytesIO()
        self._records(record).write(content)
        with suppress(OSError):  # the log reports it
            self._file.append(record.getvalue())
