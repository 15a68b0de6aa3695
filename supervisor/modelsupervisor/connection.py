"""One connection to a worker: a frame out, a frame back, before a deadline; and what its end means
for the request.

When a worker's socket ends before the answer is whole, it matters whether the request was *read*:
only then can it have been run, and only then may it be what killed the worker. The kernel tells:

- A Unix socket that is closed with bytes in it that nobody read gives its peer ECONNRESET; the same
  where the connection never left the backlog. So does EPIPE on our side say that the worker was
  gone before it had everything. → `Unread`
- End of file after everything was sent says that all of it was read, and then the process went
  away. → `Died`

A slot without a worker (DOWN, FAILED) accepts and closes at once: that is `Unread` as well, and
never `Died`.

An answer may come before the frame is out (413 to a frame that is too long), so both directions are
served at once: a client that only sends would wait for a worker that only sends.
"""

from __future__ import annotations

import select
import socket
import time

from modelworker.wire import PredictResponse, ResponseReader

_CHUNK = 256 * 1024  # bytes; a Unix socket's buffer is 208 KiB unless the machine was tuned


class Unread(Exception):
    """The worker closed the connection before it had read the request; the request was not run."""


class Died(Exception):
    """The worker closed the connection after it had read the request, without a complete answer."""


class Connection:
    """A connected, non-blocking socket. Used by one thread at a time; any exception leaves it
    fit only for `close`."""

    def __init__(self, sock: socket.socket) -> None:
        self.reusable = False  # an exchange ended cleanly: may be kept for the next one
        self._sock = sock
        self._reader = ResponseReader()
        self._poll = select.poll()

    def close(self) -> None:
        self._sock.close()

    def is_quiet(self) -> bool:
        """False once the worker has closed it or said something unasked: it has gone stale since
        its last exchange."""
        self._poll.register(self._sock, select.POLLIN)
        return not self._poll.poll(0)

    def exchange(self, frame: bytes, deadline: float) -> PredictResponse:
        """The worker's answer to `frame`.

        TimeoutError when `deadline` (monotonic seconds) passes first, WireError for bytes that are
        no answer, Unread, Died.
        """
        self.reusable = False
        unsent = memoryview(frame)
        cut = False  # the worker does not take the rest
        while True:
            try:
                unsent = (
                    unsent[self._sock.send(unsent, socket.MSG_NOSIGNAL) :] if unsent else unsent
                )
            except BlockingIOError:
                pass
            except ConnectionError:
                # It may have answered before it closed: what is there to be read decides.
                unsent, cut = unsent[:0], True
            self._wait(bool(unsent), deadline)
            response = self._receive(whole=not unsent and not cut)
            if response is not None:
                # What came beyond the answer would be taken for the next one.
                self.reusable = not unsent and not cut and not self._reader.pending
                return response

    def _wait(self, sending: bool, deadline: float) -> None:
        self._poll.register(self._sock, select.POLLIN | (select.POLLOUT if sending else 0))
        left = deadline - time.monotonic()
        if left <= 0 or not self._poll.poll(left * 1000):
            raise TimeoutError

    def _receive(self, whole: bool) -> PredictResponse | None:
        """The answer if it is complete now. `whole`: every byte of the frame was taken from us."""
        try:
            chunk = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            raise Unread from None
        if not chunk:
            raise Died if whole else Unread
        self._reader.feed(chunk)
        return self._reader.next_predict_response()
