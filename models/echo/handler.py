"""A model that computes next to nothing: the smoke test, and the load of the benchmarks.

A JSON list of numbers is answered with its mean (NumPy's) and count; everything else goes back as
it came, with its content type. In the MMS service API, as a module function: called once with None
at load, then once a batch.
"""

import numpy as np


def handle(data, context):
    """One reply for each request of the batch, in its order."""
    if data is None:
        return None
    replies = []
    for index, row in enumerate(data):
        body = row.get("body", b"")
        if isinstance(body, list):
            replies.append(mean_of(body, index, context))
            continue
        # Bytes are passed on untouched; a JSON document was parsed before and is encoded again.
        content_type = context.get_request_header(index, "Content-Type")
        if content_type:
            context.set_response_content_type(index, content_type)
        replies.append(body)
    return replies


def mean_of(values, index, context):
    """`{"mean": ..., "n": ...}`, or a 400 for what has no finite mean."""
    context.set_response_content_type(index, "application/json")
    if values and all(type(value) in (int, float) for value in values):
        try:
            mean = float(np.array(values, dtype=np.float64).mean())
        except OverflowError:  # an integer beyond 1.8e308
            mean = float("inf")
        if np.isfinite(mean):
            return {"mean": mean, "n": len(values)}
    context.set_response_status(code=400, phrase="Bad Request", idx=index)
    return {"error": "expected a list of one or more finite numbers"}
