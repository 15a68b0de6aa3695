"""Train the digits model and write everything that models/digits ships.

The data is scikit-learn's own copy of the UCI optical digits (`sklearn.datasets.load_digits`: 1,797
pictures of 8x8 pixels, each 0..16), so nothing is downloaded. One fifth of each digit's pictures is
held out before anything is looked at; the network is trained on the rest for a fixed number of
epochs, and the held-out pictures are used once, at the end, for the accuracy that is printed and
written into README.md. There is no early stopping and no choice among several runs, because either
would make that number a training figure.

Random numbers come from two places, both seeded: NumPy's legacy `RandomState`, whose streams NumPy
has frozen (split, order, shifts), and MXNet (initial weights, dropout).

    pip install "modelsupervisor[mxnet,examples]" scikit-learn
    python models/digits/train.py                   # rewrites the files beside it, ten seconds
    python models/digits/train.py --output FOLDER   # leaves those alone
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    # Read once, while libmxnet is loaded. The order of floating-point sums follows the number of
    # threads, so machines with different numbers of cores would get different weights: with one
    # thread the held-out accuracy was 99.16 %, with two 99.44 %.
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

# MXNet 1.9.1 reads numpy.bool, which NumPy deprecated in 1.20 and removed in 1.24.
if "bool" not in vars(np):
    np.bool = bool

import mxnet as mx
from mxnet import autograd, gluon
from mxnet.gluon import nn
from PIL import Image
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
SEED = 1998  # the year of the data set; not searched for
HELD_OUT = 0.2
REQUIRED_ACCURACY = 0.97
EPOCHS = 40
BATCH = 64
LEARNING_RATE = 3e-3
SAMPLES_PER_DIGIT = 2
SAMPLE_SCALE = 8  # one pixel of the data is 8x8 in a sample picture, so that a person can see it


class Digits(gluon.HybridBlock):
    """Three 3x3 convolutions and one dense layer (15,338 parameters): batch x 1 x 8 x 8 of 0..16
    to ten logits.
    """

    def __init__(self) -> None:
        super().__init__(prefix="digits_")
        with self.name_scope():
            self.body = nn.HybridSequential(prefix="")
            self.body.add(
                nn.Conv2D(16, 3, padding=1, activation="relu", in_channels=1),
                nn.Conv2D(32, 3, padding=1, activation="relu", in_channels=16),
                nn.MaxPool2D(2),
                nn.Conv2D(32, 3, padding=1, activation="relu", in_channels=32),
                nn.MaxPool2D(2),
                nn.Dropout(0.25),
                nn.Dense(10, in_units=128),
            )

    def hybrid_forward(self, F, x):
        return self.body(x * (1 / 16))


class Classifier(gluon.HybridBlock):
    """The trained network with softmax: what is exported, so that the handler has no arithmetic
    of its own.
    """

    def __init__(self, network: Digits) -> None:
        super().__init__(prefix="")
        self.network = network

    def hybrid_forward(self, F, x):
        return F.softmax(self.network(x))


def hold_out(labels: np.ndarray) -> np.ndarray:
    """The mask of the held-out pictures: HELD_OUT of each digit's, the same ones in every run.

    Drawn with RandomState, not with scikit-learn's splitter, so that another scikit-learn cannot
    draw another split.
    """
    random = np.random.RandomState(SEED)
    mask = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = random.permutation(np.flatnonzero(labels == digit))
        mask[members[: round(HELD_OUT * len(members))]] = True
    return mask


def shifted(pictures: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Each picture moved by -1, 0 or 1 pixel both ways, as batch x 1 x 8 x 8: the writers' hands
    were not steady.
    """
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1)))
    rows, columns = random.randint(0, 3, size=(2, len(pictures)))
    moved = [
        picture[row : row + 8, column : column + 8]
        for picture, row, column in zip(padded, rows, columns, strict=True)
    ]
    return np.stack(moved)[:, None]


def train(pictures: np.ndarray, labels: np.ndarray) -> Digits:
    """A network trained on these pictures (count x 8 x 8 of 0..16) and labels."""
    mx.random.seed(SEED)
    random = np.random.RandomState(SEED)
    network = Digits()
    network.initialize(mx.init.Xavier())
    network.hybridize()
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = mx.lr_scheduler.CosineScheduler(steps, base_lr=LEARNING_RATE, final_lr=1e-5)
    settings = {"learning_rate": LEARNING_RATE, "lr_scheduler": schedule, "wd": 1e-4}
    trainer = gluon.Trainer(network.collect_params(), "adam", settings)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    for epoch in range(EPOCHS):
        total = 0.0
        order = random.permutation(len(labels))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            inputs = mx.nd.array(shifted(pictures[chosen], random))
            with autograd.record():
                loss = loss_of(network(inputs), mx.nd.array(labels[chosen]))
            loss.backward()
            trainer.step(len(chosen))
            total += float(loss.sum().asscalar())
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:2d}  training loss {total / len(labels):.4f}")
    return network


def write_samples(
    folder: Path, pictures: np.ndarray, labels: np.ndarray, held_out: np.ndarray
) -> None:
    """The first held-out pictures of each digit as PNG, right or wrong, and which digit each one
    is.

    255/16 is no integer, but rounding v * 255 / 16 and rounding back gives v again for each of the
    17 values, so a sample is exactly the picture of the data set.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    named: dict[str, int] = {}
    for digit in range(10):
        members = np.flatnonzero(held_out & (labels == digit))[:SAMPLES_PER_DIGIT]
        for number, member in enumerate(members, start=1):
            stem = str(digit) if number == 1 else f"{digit}-{number}"
            grey = np.rint(pictures[member] * (255 / 16)).astype(np.uint8)
            enlarged = grey.repeat(SAMPLE_SCALE, axis=0).repeat(SAMPLE_SCALE, axis=1)
            Image.fromarray(enlarged).save(folder / f"{stem}.png", optimize=True)
            named[f"{stem}.png"] = digit
            if stem == "7":
                document = {"pixels": pictures[member].astype(int).tolist()}
                (folder / "7.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")


def write_accuracy(readme: Path, sentence: str) -> None:
    """Put the sentence between the accuracy markers of the README; raises ValueError where they
    are missing.
    """
    text, count = re.subn(
        r"(?s)(<!-- accuracy -->\n).*?(<!-- /accuracy -->)",
        lambda found: f"{found[1]}{sentence}\n{found[2]}",
        readme.read_text(encoding="utf-8"),
    )
    if count != 1:
        raise ValueError(f"{readme}: expected one pair of accuracy markers, found {count}")
    readme.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train and export the digits model.")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (here)")
    output: Path = parser.parse_args().output
    digits = load_digits()
    pictures, labels = digits.images.astype(np.float32), digits.target
    held_out = hold_out(labels)
    classifier = Classifier(train(pictures[~held_out], labels[~held_out]))
    classifier.hybridize()
    answers = classifier(mx.nd.array(pictures[held_out][:, None])).asnumpy().argmax(axis=1)
    right, count = int((answers == labels[held_out]).sum()), int(held_out.sum())
    sentence = (
        f"Held-out accuracy: **{right / count:.2%}** ({right} of {count} pictures; "
        f"trained on the other {len(labels) - count})."
    )
    print(sentence)
    if right / count < REQUIRED_ACCURACY:
        print(f"below {REQUIRED_ACCURACY:.0%}: nothing was written", file=sys.stderr)
        return 1
    output.mkdir(parents=True, exist_ok=True)
    classifier.export(str(output / "digits"), epoch=0)
    write_samples(output / "samples", pictures, labels, held_out)
    if output.resolve() == HERE:
        write_accuracy(HERE / "README.md", sentence)
    print(f"wrote digits-symbol.json, digits-0000.params and samples/ in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
