"""The digits model behind the MMS Python service API: pictures in, digits out.

A request is a PNG (8x8 or larger, square, white on black; grey, RGB or palette, with or without
transparency), or JSON: `{"pixels": [[...8 numbers 0..16...], ...8 rows...]}`, with the rows in one
flat list of 64 if that is handier. The answer is `{"label": 7, "probability": 0.9654}`. A request
that is no such picture gets a 400 and the reason; the others of its batch get their answers.

The whole batch is one forward pass. MXNet wants a fixed shape for each bound network, so one is
bound per power of two up to the batch size, all sharing one set of weights, and a batch is padded
to the next of them. Bound executors are the fastest of the ways MXNet offers for so small a
network: 0.15-0.18 ms for one picture on one thread, against 0.24-0.33 ms for an imported gluon
block (hybridised, with static memory or without) and 0.35 ms for a Module. They stay valid in a
forked process, as long as MXNet's default engine is used.

Nothing heavy is imported before `initialize`, which is also where a missing file or package must
show.
"""

import io
import json
import os
import struct
import zlib

import numpy as np

SIDE = 8
TOP = 16  # the data counts, for each pixel, how many of 4x4 finer pixels are white
LARGEST_SIDE = 2048  # more than a digit needs; bounds what a picture may cost, before it is decoded
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")

# What Pillow raises for a broken PNG, depending on where it is broken; there is no common base.
PNG_FAULTS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


class DigitsService:
    """One loaded network; `initialize` once, then `handle` for each batch."""

    def initialize(self, context):
        """Load the exported network from the model folder; raises what MXNet raises."""
        import mxnet
        import PIL.Image

        # Pillow looks for its plugins at the first picture, which would be once in each worker.
        import PIL.PngImagePlugin

        self.mxnet = mxnet
        self.image = PIL.Image
        prefix = os.path.join(context.system_properties["model_dir"], "digits")
        self.symbol, self.weights, self.states = mxnet.model.load_checkpoint(prefix, 0)
        self.bound = {}
        size = 1
        while size < int(context.system_properties.get("batch_size") or 1):
            self.network_for(size)
            size *= 2
        self.network_for(size)

    def warmup(self, context):
        """One picture through the whole path and one pass of each bound size: MXNet compiles its
        kernels at first use.
        """
        png = io.BytesIO()
        self.image.new("L", (SIDE, SIDE)).save(png, "PNG")
        picture = self.picture_of({"body": png.getvalue()})
        for size in self.bound:
            self.probabilities([picture] * size)

    def handle(self, data, context):
        """One reply for each request of the batch, in its order."""
        replies = [None] * len(data)
        pictures, places = [], []
        for index, row in enumerate(data):
            context.set_response_content_type(index, "application/json")
            try:
                pictures.append(self.picture_of(row))
                places.append(index)
            except ValueError as error:
                context.set_response_status(code=400, phrase="Bad Request", idx=index)
                replies[index] = {"error": str(error)}
        if pictures:
            answers = self.probabilities(pictures)
            for row, index in enumerate(places):
                label = int(answers[row].argmax())
                probability = round(float(answers[row, label]), 4)
                replies[index] = {"label": label, "probability": probability}
        return replies

    def probabilities(self, pictures):
        """The ten probabilities of each picture, count x 10."""
        network = self.network_for(len(pictures))
        batch = np.zeros(network.arg_dict["data"].shape, dtype=np.float32)
        batch[: len(pictures), 0] = pictures
        (output,) = network.forward(is_train=False, data=batch)
        # MXNet computes in the background: asnumpy waits for the result, and raises what failed.
        return output.asnumpy()[: len(pictures)]

    def network_for(self, count):
        """The bound network for `count` pictures. A size not seen before costs some
        milliseconds, so the sizes up to the batch size are bound at load, before the workers are
        forked.
        """
        size = 1 << (count - 1).bit_length()
        if size not in self.bound:
            # A network of 62 kB is quicker on a CPU than its way to a GPU and back.
            device = self.mxnet.cpu()
            pixels = self.mxnet.nd.zeros((size, 1, SIDE, SIDE), device)
            self.bound[size] = self.symbol.bind(
                device, {"data": pixels, **self.weights}, grad_req="null", aux_states=self.states
            )
        return self.bound[size]

    def picture_of(self, row):
        """The 8x8 pixels, 0..16, of one request; raises ValueError with words for the client."""
        value = row.get("body")
        if value is None:
            value = row.get("data")
        if value is None:
            raise ValueError("the request has no body: send a PNG or JSON")
        if isinstance(value, (bytes, bytearray)):
            if value[:8] == b"\x89PNG\r\n\x1a\n":
                return self.picture_of_png(value)
            value = parsed(value)
        elif isinstance(value, str):
            value = parsed(value)
        return picture_of_json(value)

    def picture_of_png(self, png):
        """The picture averaged down to 8x8. A sample made by train.py comes back exactly."""
        try:
            image = self.image.open(io.BytesIO(png), formats=("PNG",))
            width, height = image.size
            if width != height or not SIDE <= width <= LARGEST_SIDE:
                raise ValueError(
                    f"{width}x{height} pixels: a digit is square, "
                    f"{SIDE}x{SIDE} to {LARGEST_SIDE}x{LARGEST_SIDE}"
                )
            if image.mode not in MODES:
                raise ValueError(f"mode {image.mode}: a digit has 8 bits a channel, grey or RGB")
            grey = self.on_black(image).convert("L").resize((SIDE, SIDE), self.image.BOX)
        except (*PNG_FAULTS, self.image.DecompressionBombError) as error:
            raise ValueError(f"not a digit picture: {error}") from error
        return np.rint(np.asarray(grey, dtype=np.float32) * (TOP / 255))

    def on_black(self, image):
        """The image itself, or a transparent one laid on black, the data's background."""
        if image.mode not in ("LA", "RGBA") and "transparency" not in image.info:
            return image
        black = self.image.new("RGBA", image.size, (0, 0, 0, 255))
        return self.image.alpha_composite(black, image.convert("RGBA"))


def parsed(text):
    """The JSON document; raises ValueError with a sentence for the client."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: a megabyte of "["
        raise ValueError(f"neither a PNG nor JSON: {error}") from error


def picture_of_json(document):
    """The pixels of `{"pixels": ...}` or of a bare list, 8x8 or flat; raises ValueError with a
    sentence for the client.
    """
    pixels = document.get("pixels") if isinstance(document, dict) else document
    if isinstance(pixels, list) and len(pixels) == SIDE:
        if not all(isinstance(row, list) and len(row) == SIDE for row in pixels):
            raise ValueError(f"pixels: expected {SIDE} rows of {SIDE} numbers")
        pixels = [value for row in pixels for value in row]
    if not isinstance(pixels, list) or len(pixels) != SIDE * SIDE:
        raise ValueError(
            f'expected {{"pixels": {SIDE} rows of {SIDE} numbers, or one list of {SIDE * SIDE}}}'
        )
    # `type`, not isinstance: true is an int to Python. NaN fails the comparison.
    if not all(type(value) in (int, float) and 0 <= value <= TOP for value in pixels):
        raise ValueError(f"pixels: every value is a number from 0 to {TOP}")
    return np.array(pixels, dtype=np.float32).reshape(SIDE, SIDE)
