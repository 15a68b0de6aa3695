"""Not loadable: neither a function `handle` nor exactly one class."""


class First:
    def handle(self, data, context):
        return data


class Second(First):
    pass
