"""A handler that answers while a thread of its process prints without end.

A request is JSON: {"do": "flood", "rate": bytes a second, "width": bytes of a line} begins, {"do": "stop"} ends it and answers with
the number of lines that were printed by this process; anything else is echoed. Each line is its number, and filling.
"""

import json
import os
import threading
import time

LINES_AT_ONCE = 40


class Flooding:
    def __init__(self):
        self.lines = 0
        self._thread = None
        self._over = threading.Event()

    def handle(self, data, context):
        return [self._answer(request.get("body")) for request in data]

    def _answer(self, body):
        if not isinstance(body, dict):
            return body
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None
            self._over.clear()
        if body["do"] == "flood":
            order = (body["rate"], body["width"])
            self._thread = threading.Thread(target=self._flood, args=order, daemon=True)
            self._thread.start()
        return json.dumps(self.lines)

    def _flood(self, rate, width):
        pause = LINES_AT_ONCE * width / rate
        filling = b" " + b"x" * (width - 10) + b"\n"
        due = time.monotonic()
        while not self._over.is_set():
            numbers = range(self.lines, self.lines + LINES_AT_ONCE)
            left = b"".join(b"%08d" % number + filling for number in numbers)
            while left:
                left = left[os.write(1, left) :]
            self.lines += LINES_AT_ONCE
            # Who was held up does not catch up: the rate is a limit, not an average.
            due = max(due + pause, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
