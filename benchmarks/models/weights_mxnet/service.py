"""200 MiB of weights for MXNet: a Gluon network of fifty dense layers, loaded from a file of parameters."""

from __future__ import annotations

import os
import sys

import mxnet

SIDE = 1024
LAYERS = 50  # of SIDE × SIDE float32, 200 MiB in all
FILE = "weights.params"


def _network():
    network = mxnet.gluon.nn.HybridSequential()
    for _ in range(LAYERS):
        network.add(mxnet.gluon.nn.Dense(SIDE, activation="relu", in_units=SIDE))
    return network


def write(folder):
    """Make the file that `initialize` loads; run as a program, in the folder given."""
    network = _network()
    network.initialize(mxnet.init.Xavier())
    network.save_parameters(os.path.join(folder, FILE))


class WeightsService:
    """The network, hybridized."""

    def initialize(self, context):
        """Load the parameters."""
        self.network = _network()
        # Without this Gluon makes room for a gradient of each parameter: as much again as the weights.
        self.network.collect_params().setattr("grad_req", "null")
        self.network.load_parameters(
            os.path.join(context.system_properties["model_dir"], FILE), ctx=mxnet.cpu()
        )
        self.network.hybridize(static_alloc=True, static_shape=True)

    def warmup(self, context):
        """One request's work."""
        self._infer()

    def handle(self, data, context):
        """A number for each request of the batch."""
        return [str(self._infer()) for _ in data]

    def _infer(self):
        return float(self.network(mxnet.nd.ones((1, SIDE))).asnumpy()[0, 0])


if __name__ == "__main__":
    write(sys.argv[1])
