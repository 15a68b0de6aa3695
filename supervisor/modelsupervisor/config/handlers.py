"""The handler of a model, and what stands for it in the model's folder or archive.

Nothing is imported or unpacked here: a handler's file has to be there, and a manifest has to name a handler where the configuration
does not. An archive is judged as a whole, by the same reader that unpacks it later: what its index shows to be wrong costs a line
now and not a start.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

import msgspec

from modelworker.archive import (
    LARGEST_MANIFEST,
    MANIFEST,
    open_archive,
    read_contents,
    read_manifest,
)
from modelworker.zipindex import ArchiveError

from modelsupervisor.config.paths import is_archive
from modelsupervisor.config.reports import quoted
from modelsupervisor.config.values import BadValueError, ValueType, reason


def handler_name() -> ValueType:
    """`module:function` or `module`; MMS lets `.py` be written after the module; a dotted module
    lies in a package.
    """

    def parse(text: str) -> str:
        _, colon, function = text.partition(":")
        if not all(map(str.isidentifier, _module(text))) or (colon and not function.isidentifier()):
            raise BadValueError
        return text

    return ValueType(
        "module:function", "module:function or module, of a file in the model's folder", parse
    )


def _module(handler: str) -> list[str]:
    return handler.partition(":")[0].removesuffix(".py").split(".")


class _ManifestModel(msgspec.Struct):
    handler: str


class _Manifest(msgspec.Struct):
    model: _ManifestModel


def _named(text: bytes, path: str) -> str:
    try:
        return msgspec.json.decode(text, type=_Manifest).model.handler
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadValueError(f"{path} names no handler: {error}") from None


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder."""

    path: str

    def check_handler_file(self, handler: str) -> None:
        """Raise BadValueError unless the module of `handler` has its file here. Nothing is opened."""
        base = os.path.join(self.path, *_module(handler))
        package = os.path.join(base, "__init__.py")
        if not os.path.isfile(f"{base}.py") and not os.path.isfile(package):
            raise BadValueError(f"{base}.py does not exist")

    def manifest_handler(self) -> str | None:
        """The handler that the model's own manifest names; None where there is no manifest;
        BadValueError where it is unusable.
        """
        path = os.path.join(self.path, MANIFEST)
        try:
            # A regular file, or nothing: opening a FIFO would wait for a writer for ever.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise BadValueError(f"{path} is not a regular file")
            with open(path, "rb") as file:
                text = file.read(LARGEST_MANIFEST + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BadValueError(f"{path} cannot be read: {reason(error)}") from None
        if len(text) > LARGEST_MANIFEST:
            raise BadValueError(f"{path} is larger than 1MiB")
        return _named(text, path)


@dataclass(frozen=True)
class ModelArchive:
    """A model's archive, by the names of its files and the bytes of its manifest."""

    path: str
    names: frozenset[str]
    manifest: bytes | None

    def check_handler_file(self, handler: str) -> None:
        """Raise BadValueError unless the module of `handler` has its file in the archive."""
        base = "/".join(_module(handler))
        if self.names.isdisjoint((f"{base}.py", f"{base}/__init__.py")):
            raise BadValueError(f"{self.path} has no file {base}.py")

    def manifest_handler(self) -> str | None:
        """The handler that the manifest names; None where there is none; BadValueError where it is
        unusable.
        """
        return None if self.manifest is None else _named(self.manifest, f"{self.path}: {MANIFEST}")


def look_into(path: str, largest: int) -> ModelFolder | ModelArchive:
    """A model's folder, or its archive of at most `largest` bytes, packed and unpacked.

    Raises BadValueError for an archive that could not be unpacked, as far as its index shows it.
    """
    if not is_archive(path):
        return ModelFolder(path)
    try:
        with open_archive(path) as stream:
            contents = read_contents(stream, largest)
            manifest = read_manifest(stream, contents)
    except ArchiveError as error:
        said = f"{path} cannot be used: {error.message}"
        raise BadValueError(said, error.expected or "a sound archive") from None
    except OSError as error:
        raise BadValueError(f"{path} cannot be read: {reason(error)}") from None
    return ModelArchive(path, frozenset(member.name for member in contents.files), manifest)


def handler_of(model: ModelFolder | ModelArchive, written: str | None) -> str:
    """The handler to use, checked; raises BadValueError. What the file says goes before what the
    manifest says.
    """
    if written is not None:
        model.check_handler_file(written)
        return written
    named = model.manifest_handler()
    if named is None:
        raise BadValueError(
            f"the key handler is missing, and {model.path} has no {MANIFEST} to name one"
        )
    try:
        handler_name().parse(named)
        model.check_handler_file(named)
    except BadValueError as bad:
        said = f": {bad.message}" if bad.message else ""
        raise BadValueError(f"{MANIFEST} names the handler {quoted(named)}{said}") from None
    return named
