"""A net so small that what surrounds its arithmetic is all there is: two dense layers of 64 on MXNet."""

from __future__ import annotations

import mxnet

SIDE = 64


class TinyService:
    """The network, hybridized; its weights need no file."""

    def initialize(self, context):
        """Two layers."""
        self.network = mxnet.gluon.nn.HybridSequential()
        self.network.add(
            mxnet.gluon.nn.Dense(SIDE, activation="relu", in_units=SIDE),
            mxnet.gluon.nn.Dense(10, in_units=SIDE),
        )
        self.network.collect_params().setattr("grad_req", "null")
        self.network.initialize(mxnet.init.Xavier())
        self.network.hybridize(static_alloc=True, static_shape=True)
        self.input = mxnet.nd.ones((1, SIDE))

    def warmup(self, context):
        """One request's work."""
        self._infer()

    def handle(self, data, context):
        """A number for each request of the batch."""
        return [str(self._infer()) for _ in data]

    def _infer(self):
        return float(self.network(self.input).asnumpy()[0, 0])
