"""A handler of the other kind: the one class of its module, with everything that a context can do."""

from mms.metrics.dimension import Dimension
from mms.service import PredictionException


class Classy:
    def __init__(self):
        self.context = None
        self.warmed = False
        self.forked = False

    def initialize(self, context):
        self.context = context

    def warmup(self, context):
        self.warmed = context is self.context

    def after_fork(self, context):
        self.forked = context is self.context

    def handle(self, data, context):
        if data[0].get("body") == b"refuse":
            raise PredictionException("not today", 599)
        context.set_response_content_type(0, "text/plain")
        context.set_response_header(0, "dummy", "1")
        context.set_response_status(201, "Made", 0)
        context.metrics.add_counter("seen", len(data), dimensions=[Dimension("Kind", "test")])
        return ["OK"] * len(data)
