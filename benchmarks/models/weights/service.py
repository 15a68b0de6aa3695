"""200 MiB of weights for NumPy: 50 square matrices in one file, of which a request is multiplied with each in turn."""

from __future__ import annotations

import os
import sys

import numpy as np

SIDE = 1024
LAYERS = 50  # of SIDE × SIDE float32, 200 MiB in all
FILE = "weights.npy"


def write(folder):
    """Make the file that `initialize` loads; run as a program, in the folder given."""
    random = np.random.default_rng(0)
    np.save(os.path.join(folder, FILE), random.random((LAYERS, SIDE, SIDE), np.float32))


class WeightsService:
    """The matrices, read whole."""

    def initialize(self, context):
        """Read the file; nothing of it is mapped, so that its memory is this process's."""
        self.weights = np.load(os.path.join(context.system_properties["model_dir"], FILE))

    def warmup(self, context):
        """One request's work."""
        self._infer()

    def handle(self, data, context):
        """A number for each request of the batch."""
        return [str(self._infer()) for _ in data]

    def _infer(self):
        vector = np.ones(SIDE, np.float32)
        for layer in self.weights:
            vector = layer @ vector
            vector /= vector.sum()
        return float(vector[0])


if __name__ == "__main__":
    write(sys.argv[1])
