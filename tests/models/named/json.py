"""A handler whose name is a standard module's."""


def handle(data, context):
    return data
