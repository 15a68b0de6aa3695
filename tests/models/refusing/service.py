"""Fails while it is loaded; MMS would serve it all the same."""


def handle(data, context):
    raise RuntimeError("no weights at %s" % context.system_properties["model_dir"])
