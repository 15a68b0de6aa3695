"""Fails while it is loaded; MMS would serve it all the same."""


def handle(data, context):
    raise RuntimeError(f"no weights at {context.system_properties['model_dir']}")
