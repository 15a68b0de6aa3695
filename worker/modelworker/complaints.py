"""What a process that cannot go on says of its failure, also when it is memory that it lacks.

A MemoryError keeps what filled the memory: the exception holds the frames it passed, and these their variables. Whoever reports it
needs memory himself, for a traceback and a message; so those frames are emptied first. Whether memory was lacking is said as a
field of its own, by the exception's type: the supervisor is not to guess it from a text.
"""

from __future__ import annotations

import errno
import traceback
from typing import Any, Dict, Optional, Set

from modelworker.channel import tail

_ERROR_KEPT = 2048


def lacked_memory(error: BaseException) -> bool:
    """True where the interpreter or the kernel said that there is no memory to be had."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError)


def release(error: Optional[BaseException]) -> None:
    """Empty the frames that an exception, and those it came from, passed; their memory is free again after that."""
    seen: Set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def complaint(error: BaseException) -> Dict[str, Any]:
    """The fields of `load_failed` and `start_failed`: `error` in a line, its `traceback`, and whether it was want of `memory`."""
    memory = lacked_memory(error)
    if memory:
        release(error)
    name = type(error).__name__
    try:
        said = "%s: %s" % (name, error) if str(error) else name
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    # No memory left even for that, or a __str__ that raises: the little that is certain is said
    except Exception as broken:  # noqa: BLE001
        said, text = "%s (not printable: %s)" % (name, type(broken).__name__), ""
    return {"error": tail(said, _ERROR_KEPT), "traceback": tail(text), "memory": memory}
