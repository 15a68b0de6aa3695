"""The least that a handler can do: every body back as it came."""


def handle(data, context):
    """Return the bodies."""
    return None if data is None else [request["body"] for request in data]
