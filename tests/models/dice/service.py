"""Draws from every source of random numbers that it can import; the state of each is there before the fork."""

import os
import random

SOURCES = [random.random]
random.seed(1)
try:
    import numpy as np
except ImportError:
    pass
else:
    np.random.seed(1)
    SOURCES.append(lambda: float(np.random.random()))
if os.environ.get("DICE_MXNET"):
    import mxnet

    mxnet.random.seed(1)
    SOURCES.append(lambda: float(mxnet.nd.random.uniform().asscalar()))


def handle(data, context):
    return [[draw() for draw in SOURCES] for _ in data or ()]
