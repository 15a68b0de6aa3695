"""The digits example: what models/digits ships answers what its README promises.

The handler is loaded by path and given the part of the MMS context that it uses, so a failure here
is the example's own and not the worker's.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import select
import signal
import warnings
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

if "bool" not in vars(np):  # as the template does before it imports a framework
    np.bool = bool  # type: ignore[attr-defined]
with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore"
    )  # MXNet 1.9.1's imports are older than the deprecations they meet
    mxnet = pytest.importorskip("mxnet", reason="the digits example needs MXNet")
Image = pytest.importorskip("PIL.Image", reason="the digits example reads PNG with Pillow")

FOLDER = Path(__file__).resolve().parents[2] / "models" / "digits"
SAMPLES = sorted((FOLDER / "samples").glob("*.png"))
BATCH_SIZE = 8


class FakeContext:
    """The names of the MMS context that this handler uses."""

    def __init__(self) -> None:
        self.system_properties = {"model_dir": str(FOLDER), "batch_size": BATCH_SIZE, "gpu_id": -1}
        self.statuses: dict[int, int] = {}
        self.content_types: dict[int, str] = {}

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.content_types[idx] = value


def load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"digits_{Path(file).stem}", FOLDER / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def service() -> Any:
    loaded = load("handler.py").DigitsService()
    context = FakeContext()
    loaded.initialize(context)
    loaded.warmup(context)
    assert context.statuses == {}
    assert context.content_types == {}
    return loaded


def ask(service: Any, *bodies: object) -> tuple[list[Any], FakeContext]:
    context = FakeContext()
    return service.handle([{"body": body} for body in bodies], context), context


def png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def pixels_of(sample: Path) -> list[list[int]]:
    """The sample as the data set has it, by a way that the handler does not use: one pixel of each
    8x8 square.
    """
    grey = np.asarray(Image.open(sample))[::8, ::8].astype(float)
    return [[round(value * 16 / 255) for value in row] for row in grey]


def test_the_samples_are_two_of_each_digit_and_their_names_and_labels_agree() -> None:
    """labels.json names every PNG; the name before - or . is the digit."""
    labels = json.loads((FOLDER / "samples" / "labels.json").read_text(encoding="utf-8"))
    assert sorted(labels) == [sample.name for sample in SAMPLES]
    assert sorted(labels.values()) == sorted([*range(10)] * 2)
    assert all(int(re.split("[-.]", name)[0]) == label for name, label in labels.items())
    assert labels["7.png"] == 7


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_each_sample_is_recognised_and_json_and_png_agree(service: Any, sample: Path) -> None:
    """A sample gets its label, and the same answer as PNG, as rows, as a flat list, and as
    undecoded JSON.
    """
    rows = pixels_of(sample)
    flat = [value for row in rows for value in row]
    bodies = (sample.read_bytes(), {"pixels": rows}, {"pixels": flat}, rows, json.dumps(rows))
    replies, context = ask(service, *bodies, json.dumps({"pixels": flat}).encode())
    assert {reply["label"] for reply in replies} == {int(sample.name[0])}
    assert len({reply["probability"] for reply in replies}) == 1
    assert 0.1 < replies[0]["probability"] <= 1.0
    assert context.statuses == {}
    assert set(context.content_types.values()) == {"application/json"}


def test_the_json_sample_is_the_picture_of_the_png_sample() -> None:
    """samples/7.json and samples/7.png are one picture."""
    document = json.loads((FOLDER / "samples" / "7.json").read_text(encoding="utf-8"))
    assert document["pixels"] == pixels_of(FOLDER / "samples" / "7.png")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("side", [8, 64, 200])
def test_a_picture_of_any_colour_mode_and_square_size_is_read(
    service: Any, mode: str, side: int
) -> None:
    """The same seven, saved in another mode and size, is still a seven."""
    seven = Image.open(FOLDER / "samples" / "7.png")
    resized = seven.resize((side, side), Image.NEAREST).convert(mode)
    replies, _ = ask(service, png(resized))
    assert replies[0]["label"] == 7


def test_transparent_pixels_count_as_background(service: Any) -> None:
    """White ink on transparent white is the same picture as white on black."""
    seven = Image.open(FOLDER / "samples" / "7.png")
    ink = Image.new("RGBA", seven.size, (255, 255, 255, 0))
    ink.putalpha(seven)
    replies, _ = ask(service, png(ink), png(seven))
    assert replies[0] == replies[1]


SEVEN = FOLDER.joinpath("samples", "7.png").read_bytes() if SAMPLES else b""


def claiming(side: int) -> bytes:
    """The seven with a valid header that claims another size."""
    header = SEVEN[12:16] + side.to_bytes(4, "big") * 2 + SEVEN[24:29]
    return SEVEN[:12] + header + zlib.crc32(header).to_bytes(4, "big") + SEVEN[33:]


BAD_BODIES = {
    "no body": (None, "no body"),
    "not a picture": (b"\x00\x01\x02", "neither a PNG nor JSON"),
    "png cut off": (SEVEN[:80], "not a digit picture"),
    "png signature alone": (SEVEN[:8], "not a digit picture"),
    "png with broken checksum": (SEVEN[:40] + b"\xff" + SEVEN[41:], "not a digit picture"),
    "too small": (png(Image.new("L", (7, 7))), "7x7 pixels"),
    "not square": (png(Image.new("L", (64, 32))), "64x32 pixels"),
    "too large": (png(Image.new("1", (4000, 4000))), "4000x4000 pixels"),
    "enormous": (claiming(50_000), "decompression bomb"),
    "16 bits a pixel": (png(Image.new("I;16", (8, 8))), "mode I;16"),
    "a jpeg": (b"\xff\xd8\xff\xe0" + bytes(60), "neither a PNG nor JSON"),
    "bad json": ('{"pixels": [1,', "neither a PNG nor JSON"),
    "deep json": ("[" * 200_000, "neither a PNG nor JSON"),
    "another document": ({"image": []}, "expected"),
    "a number": (7, "expected"),
    "too few": ({"pixels": [0] * 63}, "expected"),
    "ragged": ({"pixels": [[0] * 8] * 7 + [[0] * 7]}, "8 rows of 8 numbers"),
    "above 16": ({"pixels": [0] * 63 + [17]}, "0 to 16"),
    "below 0": ({"pixels": [-1] + [0] * 63}, "0 to 16"),
    "text": ({"pixels": ["0"] * 64}, "0 to 16"),
    "booleans": ({"pixels": [True] * 64}, "0 to 16"),
    "not a number": ({"pixels": [float("nan")] * 64}, "0 to 16"),
    "huge integer": ({"pixels": [10**400] * 64}, "0 to 16"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_request_gets_400_with_the_reason_and_its_batch_is_answered(
    service: Any, case: str
) -> None:
    """Between two good pictures, only the bad one is refused."""
    body, reason = BAD_BODIES[case]
    good = (FOLDER / "samples" / "3.png").read_bytes()
    replies, context = ask(service, good, body, SEVEN)
    assert [replies[0]["label"], replies[2]["label"]] == [3, 7]
    assert context.statuses == {1: 400}
    assert list(replies[1]) == ["error"]
    assert reason in replies[1]["error"]


def test_no_damage_to_a_picture_harms_more_than_its_own_request(service: Any) -> None:
    """Every prefix and every single changed byte of a PNG is answered or refused."""
    prefixes = [SEVEN[:end] for end in range(len(SEVEN))]
    changed = [
        SEVEN[:at] + bytes([SEVEN[at] ^ flip]) + SEVEN[at + 1 :]
        for at in range(len(SEVEN))
        for flip in (0x01, 0xFF)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about the sizes that such a header claims
        replies, context = ask(service, *prefixes, *changed)
    refused = {index for index, reply in enumerate(replies) if "error" in reply}
    assert all("label" in reply for at, reply in enumerate(replies) if at not in refused)
    assert context.statuses == dict.fromkeys(refused, 400)
    assert len(refused) > len(replies) / 2


def test_a_batch_of_only_bad_requests_is_answered(service: Any) -> None:
    """No forward pass without a picture."""
    replies, context = ask(service, b"", b"")
    assert context.statuses == {0: 400, 1: 400}
    assert all("error" in reply for reply in replies)


@pytest.mark.parametrize("count", range(1, BATCH_SIZE + 2))
def test_the_answer_does_not_depend_on_the_batch(service: Any, count: int) -> None:
    """Batches are padded to a power of two: every place of every size answers as a batch of one
    does.
    """
    bodies = [sample.read_bytes() for sample in SAMPLES[:count]]
    together, _ = ask(service, *bodies)
    alone = [ask(service, body)[0][0] for body in bodies]
    assert [reply["label"] for reply in together] == [reply["label"] for reply in alone]
    assert [reply["probability"] for reply in together] == pytest.approx(
        [reply["probability"] for reply in alone], abs=2e-4
    )


def test_a_form_field_called_data_is_read_too(service: Any) -> None:
    """Clients of MMS upload pictures as the form field `data`."""
    context = FakeContext()
    assert service.handle([{"data": bytearray(SEVEN)}], context)[0]["label"] == 7


def test_a_forked_child_answers_with_the_model_that_its_parent_loaded(service: Any) -> None:
    """What the supervisor relies on: load and warm once, fork, predict in the child."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads: MXNet's
        pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(ask(service, SEVEN)[0]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    answered, _, _ = select.select([reading], [], [], 30)
    if not answered:
        os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == 0
    with open(reading, "rb") as answer:
        assert json.loads(answer.read()) == ask(service, SEVEN)[0]


def test_the_model_files_are_small() -> None:
    """Symbol and parameters together stay under 200 kB, and a sample under 1 kB."""
    model = [FOLDER / "digits-symbol.json", FOLDER / "digits-0000.params"]
    assert sum(file.stat().st_size for file in model) < 200_000
    assert all(sample.stat().st_size < 1000 for sample in SAMPLES)


def test_the_accuracy_in_the_readme_is_what_the_shipped_model_has(service: Any) -> None:
    """Recomputed through the handler, over all held-out pictures, from scikit-learn's own data."""
    pytest.importorskip("sklearn", reason="the held-out pictures come with scikit-learn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    held_out = load("train.py").hold_out(digits.target)
    claimed = re.search(
        r"\*\*([\d.]+)%\*\* \((\d+) of (\d+) pictures", (FOLDER / "README.md").read_text("utf-8")
    )
    assert claimed is not None
    bodies = [{"body": {"pixels": picture.tolist()}} for picture in digits.images[held_out]]
    labels = digits.target[held_out]
    replies = service.handle(bodies, FakeContext())
    right = sum(reply["label"] == label for reply, label in zip(replies, labels, strict=True))
    assert (right, len(labels)) == (int(claimed[2]), int(claimed[3]))
    assert f"{right / len(labels):.2%}" == f"{claimed[1]}%"
    assert right / len(labels) >= 0.97
    samples = {json.dumps(pixels_of(sample)) for sample in SAMPLES}
    assert samples <= {
        json.dumps(picture.astype(int).tolist()) for picture in digits.images[held_out]
    }
