"""The scoreboard as the supervisor sees it: one record a slot, written by workers, read as hostile input."""

from __future__ import annotations

import mmap
import os

from modelworker.scoreboard import RECORD_SIZE, Reading, read_record

from modelsupervisor.errors import StartError
from modelsupervisor.runtime.rundir import RunDirectory

NOTHING = Reading(generation=0, requests=0, busy_since=0.0, in_hand=0, ids=())


class Board:
    """The mapped file. A worker gets the file's descriptor and maps its own record of it."""

    def __init__(self, rundir: RunDirectory, records: int) -> None:
        self._rundir = rundir
        self._size = records * RECORD_SIZE
        self.fd = -1
        self._map: mmap.mmap | None = None

    def make(self) -> None:
        """Make and map the file. Raises StartError."""
        self.fd = self._rundir.scoreboard(self._size)
        try:
            self._map = mmap.mmap(self.fd, self._size, prot=mmap.PROT_READ)
        except OSError as error:
            raise StartError(f"cannot map the scoreboard: {error.strerror}") from error

    @staticmethod
    def offset(number: int) -> int:
        """Where the record of a slot begins."""
        return number * RECORD_SIZE

    def read(self, number: int, generation: int) -> Reading:
        """What a generation wrote; nothing where the record is not its own (it died before it wrote one)."""
        if self._map is None:
            return NOTHING
        reading = read_record(self._map, self.offset(number))
        return reading if reading.generation == generation else NOTHING

    def close(self) -> None:
        """Unmap and close."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
