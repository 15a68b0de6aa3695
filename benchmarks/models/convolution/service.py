"""A convolution net of MXNet Gluon with random weights: one picture takes some 20 ms on one core.

The answer is how long the network took, in milliseconds, so that two processes can be compared without what carries the request.
"""

from __future__ import annotations

import time

import mxnet

SIDE = 224
CHANNELS = (32, 64, 128, 256)


class ConvolutionService:
    """The network, hybridized; its weights need no file."""

    def initialize(self, context):
        """Four stages of two convolutions, each stage of half the side, and a classifier."""
        layers = mxnet.gluon.nn
        self.network = layers.HybridSequential()
        for channels in CHANNELS:
            for stride in (2, 1):
                self.network.add(
                    layers.Conv2D(channels, 3, stride, 1, use_bias=False),
                    layers.BatchNorm(),
                    layers.Activation("relu"),
                )
        self.network.add(layers.GlobalAvgPool2D(), layers.Dense(100))
        self.network.collect_params().setattr("grad_req", "null")
        self.network.initialize(mxnet.init.Xavier())
        self.network.hybridize(static_alloc=True, static_shape=True)
        self.picture = mxnet.nd.ones((1, 3, SIDE, SIDE))

    def warmup(self, context):
        """Twice: MXNet chooses its kernels at the first run, and lays the weights out for them at the second."""
        self._infer()
        self._infer()

    def handle(self, data, context):
        """Milliseconds of one inference for each request of the batch."""
        return [
            f"{1000 * self._infer():012.4f}" for _ in data
        ]  # of one length, as clients here expect

    def _infer(self):
        begun = time.perf_counter()
        self.network(self.picture).asnumpy()
        return time.perf_counter() - begun
