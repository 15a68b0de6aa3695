"""Draws from every source of random numbers that it can import; the state of each is there before the fork.

With DICE_SEED it is the same state in every process; by itself a fresh process has numbers of its own.
"""

import os
import random

SEED = int(os.environ.get("DICE_SEED", "1") or 0)
SOURCES = [random.random]
if SEED:
    random.seed(SEED)
try:
    import numpy as np
except ImportError:
    pass
else:
    if SEED:
        np.random.seed(SEED)
    SOURCES.append(lambda: float(np.random.random()))
if os.environ.get("DICE_MXNET"):
    import mxnet

    if SEED:
        mxnet.random.seed(SEED)
    SOURCES.append(lambda: float(mxnet.nd.random.uniform().asscalar()))


def handle(data, context):
    return [[draw() for draw in SOURCES] for _ in data or ()]
