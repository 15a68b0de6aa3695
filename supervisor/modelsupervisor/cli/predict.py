"""`predict`: files in, one line an answer out, in the order of the files.

Over the workers' own sockets, with the client that the library offers; the control socket is only
asked whether a supervisor runs at all, so that a leftover directory gives "not running" and not a
list of refused connections.
"""

from __future__ import annotations

import base64
import mimetypes
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from modelsupervisor.cli import complain, say
from modelsupervisor.cli.instance import connect, find_instance, instance_options
from modelsupervisor.cli.terminal import one_line
from modelsupervisor.client import Client
from modelsupervisor.errors import EXIT_FAILED, EXIT_OK, ClientError
from modelsupervisor.prediction import LARGEST_BODY, OCTETS, Prediction


@dataclass(frozen=True)
class _Outcome:
    """What became of one file: an answer, an error, or an answer that the handler marked as an
    error (both)."""

    file: str
    prediction: Prediction | None = None
    error: str = ""


@click.command()
@click.argument("model")
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@instance_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a file.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, max=604800, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For each file.",
)
@click.option(
    "--content-type", metavar="TYPE", default=None, help="Of every file, instead of by its name."
)
def predict(
    model: str,
    files: tuple[str, ...],
    config: str | None,
    run_dir: str | None,
    as_json: bool,
    timeout: float,
    content_type: str | None,
) -> int:
    """Send each FILE to MODEL and print `FILE<TAB>label`, or the answer where it has no label; - is
    standard input.

    A file that fails is named on stderr, the others go on, and the exit code is 1.
    """
    if files.count("-") > 1:
        raise click.UsageError("standard input can be read only once")
    instance = find_instance(config, run_dir)
    connect(instance).close()
    failed = False
    with Client.from_run_dir(instance.run_dir, model, timeout=timeout) as client:
        for file in files:
            outcome = _predict_file(client, file, content_type)
            if as_json:
                say(msgspec.json.encode(_as_object(outcome)).decode())
            elif outcome.prediction is not None and not outcome.error:
                say(f"{outcome.file}\t{answer_line(outcome.prediction)}")
            if outcome.error:
                failed = True
                complain(f"{outcome.file}: {outcome.error}")
    return EXIT_FAILED if failed else EXIT_OK


def _predict_file(client: Client, file: str, content_type: str | None) -> _Outcome:
    name = one_line(click.format_filename(file))
    try:
        with click.open_file(file, "rb") as stream:
            body = stream.read(LARGEST_BODY + 1)  # /dev/zero has no end
    except OSError as error:
        return _Outcome(name, error=error.strerror or str(error))
    try:
        prediction = client.predict(body, content_type or content_type_of(file))
    except ClientError as error:
        return _Outcome(name, error=one_line(str(error)))
    if prediction.ok:
        return _Outcome(name, prediction)
    said = " ".join(part for part in (prediction.phrase, answer_line(prediction)) if part)
    return _Outcome(name, prediction, one_line(f"the model answered {prediction.status} {said}"))


def content_type_of(file: str) -> str:
    """The content type that a file's name says, `application/octet-stream` where it says none."""
    kind, encoding = mimetypes.guess_type(file)
    return kind if kind and not encoding else OCTETS  # x.json.gz is not JSON


def answer_line(prediction: Prediction) -> str:
    """The answer in one line: label (and probability) where it is a JSON object that has them,
    else its text."""
    answer = _parsed(prediction)
    if isinstance(answer, dict) and "label" in answer:
        fields = [answer["label"]]
        if "probability" in answer:
            fields.append(answer["probability"])
        return "\t".join(_field(each) for each in fields)
    if isinstance(answer, bytes):
        return f"{len(answer)} bytes of {prediction.content_type or OCTETS}"
    return one_line(prediction.text.strip())


def _field(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return one_line(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _as_object(outcome: _Outcome) -> dict[str, Any]:
    shown: dict[str, Any] = {"file": outcome.file}
    prediction = outcome.prediction
    if prediction is not None:
        shown["status"] = prediction.status
        shown["content_type"] = prediction.content_type
        shown["request_id"] = prediction.request_id
        shown["worker"] = prediction.worker
        answer = _parsed(prediction)
        if isinstance(answer, bytes):
            shown["answer_b64"] = base64.b64encode(answer).decode("ascii")
        else:
            shown["answer"] = answer
    if outcome.error:
        shown["error"] = outcome.error
    return shown


def _parsed(prediction: Prediction) -> Any:
    """The answer as text where it says so, else as JSON where it is JSON, else as text where it
    is readable, else bytes."""
    if prediction.content_type.startswith("text/"):
        return prediction.text
    try:
        return msgspec.json.decode(prediction.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # A byte that is not UTF-8 becomes a surrogate, which is not printable.
    text = prediction.body.decode("utf-8", "surrogateescape")
    readable = all(c.isprintable() or c.isspace() for c in text)
    return text if readable else prediction.body
