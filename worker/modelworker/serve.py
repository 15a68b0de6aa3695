"""The data path of a worker: one wait on everything, and one batch at a time.

Theory of operation
-------------------
Everything happens in one thread, in turns: wait; take one new connection at most; read what came
(`session` decides from whom and in which order batches run); run one batch; write its reply. The
handler is the only thing here that may take time: reads and writes never block, and what a slow
reader does not take is kept on its own connection, whose further frames wait.

One connection a turn, and none at `max_connections`, because an accepted connection dies with the worker while one in the backlog
survives it. A stop message arrives between batches by construction: what is in hand is finished; what waits in a queue was never
begun, and its client asks the successor.

The path of one small request is three system calls, epoll_wait, recv and send. What is not needed for it is not done on it: no log,
no time of day, no closure, and a clock for a frame only when half of one is here.
"""

from __future__ import annotations

import errno
import gc
import select
import socket
import time
from functools import partial
from typing import Callable, Dict, NamedTuple, Optional

from modelworker.channel import Channel, ChannelClosed
from modelworker.loader import LoadedModel
from modelworker.loads import answer_load
from modelworker.metrics import print_or_tell
from modelworker.process import leave, peer_credentials
from modelworker.respond import answer
from modelworker.scoreboard import Record
from modelworker.session import Connection, Session
from modelworker.wire import LoadCommand, WireError, encode_predict_response

READ_SIZE = 65536  # below malloc's mmap threshold: with 256 KiB every recv maps and faults anew
MAX_EVENTS = 64  # by default epoll.poll allocates room for 1,023 at each call
IDLE_BORNE = 1.0  # seconds that a full worker lets a connection idle while another waits
FULL_PAUSE = 0.1  # seconds until a full worker whose connections are all in use looks again
ACCEPT_PAUSE = 1.0  # seconds without accepting after EMFILE and its like, so as not to spin
_NOBODY_THERE = (errno.EAGAIN, errno.EINTR, errno.ECONNABORTED)


class ServeSettings(NamedTuple):
    """`frame_timeout`: for how many seconds half a frame, or a stalled reader, is borne.

    `max_requests`: after how many answered requests to tell the supervisor that this worker may be replaced; 0 for never.
    `allow_load`: a client may choose the model.
    """

    max_connections: int
    frame_timeout: float
    max_requests: int = 0
    allow_load: bool = False


class _Peer(Connection):
    """A connection with its socket; `watched` is what epoll was told: EPOLLIN, EPOLLOUT or 0;
    `used` is when it was accepted or last answered (CLOCK_MONOTONIC).
    """

    __slots__ = ("recv", "send", "sock", "used", "watched")

    def __init__(self, sock: socket.socket, now: float) -> None:
        super().__init__()
        self.sock = sock
        self.recv = sock.recv
        self.send = sock.send
        self.watched = select.EPOLLIN
        self.used = now


def serve(
    take: Callable[[], LoadedModel],
    listener: socket.socket,
    channel: Channel,
    record: Record,
    settings: ServeSettings,
) -> int:
    """Serve until the channel says stop, or ends with the supervisor; return the exit code, 0.

    `take` gives the model, which nobody is to hold besides, so that its memory is free when another one takes its place.

    A SystemExit of the handler ends the process here, with its code and with the request in hand.
    """
    with select.epoll(settings.max_connections + 2) as epoll:
        worker = _Worker(take(), listener, channel, record, settings, epoll)
        try:
            if worker.run():
                worker.finish()
        except ChannelClosed:
            return 0
        except SystemExit as leaving:
            leave(leaving)
        finally:
            worker.close_all()
    return 0


class _Worker:
    """The sockets of one `serve`."""

    def __init__(
        self,
        model: LoadedModel,
        listener: socket.socket,
        channel: Channel,
        record: Record,
        settings: ServeSettings,
        epoll: select.epoll,
    ) -> None:
        self._model = model
        self._listener = listener
        self._channel = channel
        self._record = record
        self._settings = settings
        self._epoll = epoll
        self._session: Session[_Peer] = Session(settings.frame_timeout)
        self._peers: Dict[int, _Peer] = {}
        self._listening = False
        self._accept_again = 0.0  # when to listen again after a pause, 0.0 for no pause
        self._worn_at = settings.max_requests

    def run(self) -> bool:
        """Serve until the stop message. Raises ChannelClosed when the supervisor is gone."""
        self._listener.setblocking(False)
        self._epoll.register(self._channel.fileno(), select.EPOLLIN)
        # Once, and then switched on and off: to join again could be refused for want of memory
        self._epoll.register(self._listener.fileno(), 0)
        self._listen()
        poll, peers, clock = self._epoll.poll, self._peers, time.monotonic
        queue, timed = self._session.queue, self._session.timed
        busy = 0.0
        while True:
            unhurried = not (queue or timed or self._accept_again)
            ready = poll(None if unhurried else self._patience(clock()), MAX_EVENTS)
            now = clock()
            for descriptor, events in ready:
                peer = peers.get(descriptor)
                if peer is not None:
                    if peer.command is None and peer.output is None:
                        self._read(peer, now, busy)
                    else:
                        self._attend(peer, events, now)
                elif descriptor == self._listener.fileno():
                    self._accept(now)
                elif self._told_to_stop():
                    return True
            peer = None  # one that left is not kept, with all it sent, until another speaks
            if timed:
                self._expire(now)
            if self._accept_again and now >= self._accept_again:
                self._accept_again = 0.0
                self._listen()
            busy = 0.0
            if queue:
                self._run(queue.popleft(), now)
                if timed:
                    busy = clock() - now

    def _patience(self, now: float) -> Optional[float]:
        patience = self._session.patience(now)
        if self._accept_again and patience != 0.0:
            pause = max(0.0, self._accept_again - now)
            return pause if patience is None else min(pause, patience)
        return patience

    def _told_to_stop(self) -> bool:
        """Hear what the supervisor says, and answer its pings: a worker that hangs does not."""
        message = self._channel.receive()
        while message is not None:
            kind = message.get("kind")
            if kind == "stop":
                return True
            if kind == "ping":
                self._channel.send("echo")
            message = self._channel.receive()
        return False

    def finish(self) -> None:
        """After the stop message: flush what is kept for slow readers, for `frame_timeout` at most.

        Raises ChannelClosed when the supervisor is gone.
        """
        self._deafen()
        for peer in list(self._peers.values()):
            peer.closing = True
            if peer.output is None:
                self._close(peer)
        clock = time.monotonic
        deadline = clock() + self._settings.frame_timeout
        while self._peers and clock() < deadline:
            for descriptor, _ in self._epoll.poll(max(0.0, deadline - clock()), MAX_EVENTS):
                slow = self._peers.get(descriptor)
                if slow is not None:
                    self._flush(slow, clock())
                else:
                    self._told_to_stop()

    def close_all(self) -> None:
        """Close every connection; the listener is the supervisor's and stays open."""
        for peer in list(self._peers.values()):
            self._session.gone(peer)
            peer.sock.close()
        self._peers.clear()

    # Accepting

    def _listen(self) -> None:
        if not self._listening and not self._accept_again:
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)
            self._listening = True

    def _deafen(self) -> None:
        if self._listening:
            self._epoll.modify(self._listener.fileno(), 0)
            self._listening = False

    def _accept(self, now: float) -> None:
        """Take one connection; the rest wait in the backlog, where they survive us."""
        if len(self._peers) >= self._settings.max_connections and not self._make_room(now):
            self._accept_again = now + FULL_PAUSE
            self._deafen()
            return
        sock = None
        try:
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno not in _NOBODY_THERE:
                self._accept_again = now + ACCEPT_PAUSE
                self._deafen()
                said = f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
                self._channel.event(
                    "warning", "worker.accept_failed", error=said, pause_s=ACCEPT_PAUSE
                )
            return
        self._peers[sock.fileno()] = _Peer(sock, now)

    def _make_room(self, now: float) -> bool:
        """Close the connection that has idled longest, if that is long; False where all are in use.

        Clients keep connections; without this, those of a few idle processes would shut everybody else out. One that sends at
        this very moment finds its request unread, which a client may always ask again.
        """
        idle = [
            peer
            for peer in self._peers.values()
            if peer.command is None and not peer.since and now - peer.used >= IDLE_BORNE
        ]
        if not idle:
            return False
        self._close(min(idle, key=lambda peer: peer.used))
        return True

    # One connection

    def _watch(self, peer: _Peer, events: int) -> None:
        if peer.watched != events:
            self._epoll.modify(peer.sock.fileno(), events)
            peer.watched = events

    def _close(self, peer: _Peer) -> None:
        self._session.gone(peer)
        del self._peers[peer.sock.fileno()]
        peer.sock.close()  # which takes it out of the epoll set, too
        self._listen()

    def _attend(self, peer: _Peer, events: int, now: float) -> None:
        """Look after a peer that is not read now: its reply is kept, or its batch waits."""
        if peer.output is not None:
            self._flush(peer, now)
        elif events & select.EPOLLHUP:
            self._close(peer)  # gone altogether: nobody wants that batch
        else:
            self._watch(peer, 0)  # what it sent since waits, too

    def _read(self, peer: _Peer, now: float, busy: float) -> None:
        try:
            chunk = peer.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._close(peer)
            return
        if not chunk:
            self._close(peer)
            return
        try:
            self._session.received(peer, chunk, now, busy)
        except WireError as error:
            self._refuse(peer, error.code, error.message)
        except MemoryError:
            self._refuse(peer, 507, "Out of resources")

    def _refuse(self, peer: _Peer, code: int, message: str) -> None:
        """Answer bytes that are not the protocol, close, and say who sent them."""
        peer.closing = True
        self._tell(peer, "warning", "worker.bad_frame", code=code, error=message)
        self._send(peer, encode_predict_response(code, message, ()))

    def _tell(self, peer: _Peer, level: str, event: str, **facts: object) -> None:
        """Send an event about a peer, naming its process and user."""
        pid, uid = peer_credentials(peer.sock)
        self._channel.event(level, event, peer_pid=pid, peer_uid=uid, **facts)

    def _send(self, peer: _Peer, reply: bytes) -> None:
        """Write a reply; the kernel takes a small one whole, and what it does not take is kept."""
        try:
            sent = peer.send(reply)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(peer)
            return
        if sent < len(reply):
            self._session.stalled(peer, memoryview(reply)[sent:], time.monotonic())
            self._watch(peer, select.EPOLLOUT)
        elif peer.closing:
            self._close(peer)
        else:
            self._go_on(peer)

    def _flush(self, peer: _Peer, now: float) -> None:
        """Write more of a kept reply."""
        output = peer.output
        assert output is not None
        try:
            sent = peer.send(output)
        except BlockingIOError:
            return
        except OSError:
            self._close(peer)
            return
        if sent < len(output):
            self._session.stalled(peer, output[sent:], now)
        elif peer.closing:
            self._close(peer)
        else:
            self._go_on(peer)

    def _go_on(self, peer: _Peer) -> None:
        """Read on after a reply that was taken whole."""
        if peer.watched != select.EPOLLIN:
            self._watch(peer, select.EPOLLIN)
        peer.used = now = time.monotonic()
        try:
            self._session.answered(peer, now)
        except WireError as error:
            self._refuse(peer, error.code, error.message)

    def _expire(self, now: float) -> None:
        for peer in self._session.expired(now):
            waiting = "half a frame" if peer.output is None else "a reader that takes nothing"
            limit = self._settings.frame_timeout
            self._tell(
                peer, "warning", "worker.frame_timeout", error=waiting, frame_timeout_s=limit
            )
            self._close(peer)

    # One batch

    def _run(self, peer: _Peer, now: float) -> None:
        """Run the command that a connection has waiting, and answer it."""
        command = peer.command
        if isinstance(command, LoadCommand):
            self._load(peer, command, now)
            return
        assert command is not None
        requests = command.requests
        model = self._model
        self._record.begin([request[0] for request in requests], now)
        reply = answer(model.handle, model.context, requests, self._channel.event)
        self._send(peer, reply)
        answered = self._record.end(len(requests))
        if self._worn_at and answered >= self._worn_at:
            self._worn_at *= 2  # said again then, should this be lost
            self._channel.send("worn")
        metrics = model.context.end_batch()
        if metrics is not None:
            print_or_tell(metrics, self._channel)

    def _load(self, peer: _Peer, command: LoadCommand, now: float) -> None:
        """Answer `L`, and serve what it says from then on where it may say so."""
        self._record.begin((f"load {command.model_name}",), now)
        tell = partial(self._tell, peer)
        before = self._model
        self._model, reply = answer_load(before, command, self._settings.allow_load, tell)
        if before is not self._model:
            del before
            gc.collect()  # a module and its functions hold each other
        self._send(peer, reply)
        self._record.end(0)
