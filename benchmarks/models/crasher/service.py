"""A handler that is the end of its worker: with the request in hand, or a moment after its answer."""

import os
import threading


def handle(data, context):
    """`with` dies at once; `after` answers, and is gone a millisecond later."""
    if data is None:
        return None
    bodies = [bytes(request["body"]) for request in data]
    if b"with" in bodies:
        os._exit(7)
    if b"after" in bodies:
        threading.Timer(0.001, os._exit, [7]).start()
    return bodies
