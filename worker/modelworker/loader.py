"""From a folder and a handler's name to something that answers batches.

Handlers written for MMS are loaded as MMS loads them: the folder is the working directory and first
on the import path; `module:function` is called once with `(None, context)`; a module without the
function has exactly one class, which is made and whose `initialize(context)` is called. Two things
differ, both on purpose: what is raised while loading is raised here and fails the load (MMS
swallows it and serves a model that is not there), and a module name that would silently give a
standard module instead of the model's own file is refused.
"""

from __future__ import annotations

import importlib
import inspect
import json
import mimetypes
import os
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable, Dict, NamedTuple, Optional

from modelworker.aliases import install_mms_aliases
from modelworker.frames import Parameter, Request
from modelworker.metrics import print_metrics
from modelworker.respond import InvalidReply, predict
from modelworker.service import Context

_ERROR_STATUS = 400  # and above: see RFC 9110


class LoadError(Exception):
    """The model cannot be served as configured; `reason` says what was found and expected."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ModelSpec(NamedTuple):
    """What to load. `path` is the model's folder, `gpu_id` -1 the CPU, `warmup` a file or None, `archive` what `path` was
    unpacked from."""

    name: str
    path: str
    handler: str
    batch_size: int
    gpu_id: int
    server_version: str
    warmup: Optional[str]
    archive: Optional[str] = None


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers: `handle(data, context)` returns a list as long as `data`."""

    name: str
    path: str
    handle: Callable[[Any, Context], Any]
    context: Context
    module: ModuleType
    instance: Optional[object]
    archive: Optional[str] = None

    def is_at(self, asked: str) -> bool:
        """True where clients may call this path the model's: its folder, or the archive that it came from."""
        return any(_same_path(asked, own) for own in (self.path, self.archive) if own is not None)

    def hook(self, name: str) -> Optional[Callable[[Context], Any]]:
        """Return an optional function (`warmup`, `after_fork`) of the handler's class or module."""
        found = getattr(self.module if self.instance is None else self.instance, name, None)
        return found if callable(found) else None


def _same_path(asked: str, served: str) -> bool:
    try:
        return asked == served or os.path.realpath(asked) == os.path.realpath(served)
    except ValueError:  # a NUL in it
        return False


@dataclass(frozen=True)
class ImportedHandler:
    """A handler whose module has been imported, and of which nothing more has run."""

    spec: ModelSpec
    path: str
    function: str
    module: ModuleType
    context: Context


def load_model(spec: ModelSpec) -> LoadedModel:
    """Import and initialize a handler. Raises LoadError, or whatever the handler raises."""
    return initialize(import_handler(spec))


def import_handler(spec: ModelSpec) -> ImportedHandler:
    """Import a handler's module, in the model's folder. Raises LoadError, or whatever the module raises."""
    path = os.path.realpath(spec.path)
    try:
        os.chdir(path)
    except OSError as error:
        raise LoadError(f"model folder {spec.path}: {error.strerror}") from error
    sys.path.insert(0, path)
    install_mms_aliases()
    module_path, _, function = spec.handler.partition(":")
    module = _import_module(path, module_path)
    context = Context(
        spec.name,
        path,
        _manifest(path, spec),
        spec.batch_size,
        spec.gpu_id if spec.gpu_id >= 0 else None,
        spec.server_version,
    )
    return ImportedHandler(spec, path, function, module, context)


def initialize(handler: ImportedHandler) -> LoadedModel:
    """Have an imported handler load its model. Raises LoadError, or whatever the handler raises."""
    spec, context, module = handler.spec, handler.context, handler.module
    entry = getattr(module, handler.function or "handle", None)
    instance = None
    if entry is not None and not inspect.isclass(entry):
        entry(None, context)
        handle = entry
    else:
        instance = _instance(module, entry, spec.handler)
        begin = getattr(instance, "initialize", None)
        if begin is not None:
            begin(context)
        handle = instance.handle
    print_metrics(context.end_batch())
    return LoadedModel(spec.name, handler.path, handle, context, module, instance, spec.archive)


def _import_module(path: str, module_path: str) -> ModuleType:
    """Import the handler's module by its file's name, from the model's folder or a folder in it."""
    stem = module_path[:-3] if module_path.endswith(".py") else module_path
    folder, name = os.path.split(stem)
    if folder:
        sys.path.insert(0, os.path.join(path, folder))
    if not name:
        raise LoadError(f"handler {module_path!r} names no module; expected module:function")
    # The folder is the model's own: nothing is written into it, and a handler that was changed twice within a second, to the same
    # length, is not found unchanged (what Python knows a stale .pyc by).
    sys.dont_write_bytecode = True
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # the handler's own import failed: its traceback says where
        raise LoadError(f"no module {name!r} in the model folder {path}") from error
    own = os.path.join(path, folder, name.replace(".", os.sep) + ".py")
    loaded = getattr(module, "__file__", None)
    if os.path.exists(own) and (loaded is None or not os.path.samefile(own, loaded)):
        raise LoadError(f"{own} cannot be imported: {name!r} is the module {loaded or name}")
    return module


def _instance(module: ModuleType, named: Optional[type], handler: str) -> Any:
    """Make the class that the handler names, or the one that its module defines."""
    classes = {
        member
        for member in vars(module).values()
        if inspect.isclass(member) and member.__module__ == module.__name__
    }
    if named is None and len(classes) != 1:
        found = ", ".join(sorted(each.__name__ for each in classes)) or "none"
        raise LoadError(f"handler {handler!r}: no such function, nor exactly one class: {found}")
    instance = (named or classes.pop())()
    if not callable(getattr(instance, "handle", None)):
        raise LoadError(f"class {type(instance).__name__} of handler {handler!r} has no handle()")
    return instance


def _manifest(path: str, spec: ModelSpec) -> Dict[str, Any]:
    """Return the archive's manifest, or a minimal one for a plain folder."""
    file = os.path.join(path, "MAR-INF", "MANIFEST.json")
    try:
        with open(file, encoding="utf-8") as stream:
            manifest: Any = json.load(stream)
    except FileNotFoundError:
        return {
            "specificationVersion": "1.0",
            "runtime": "python",
            "model": {"modelName": spec.name, "modelVersion": "1.0", "handler": spec.handler},
        }
    except (OSError, ValueError) as error:
        raise LoadError(f"manifest {file}: {error}") from error
    if not isinstance(manifest, dict):
        raise LoadError(f"manifest {file}: expected an object, not {type(manifest).__name__}")
    return manifest


def warm_up(model: LoadedModel, warmup_file: Optional[str]) -> bool:
    """Run the model once before it is READY; False where there is neither a file nor a hook to run.

    The file's bytes become one request with the parameter `body`, its content type guessed from the
    name, and the answer is checked as any answer is. Raises LoadError for a bad one, or whatever
    the handler raises.
    """
    if warmup_file is None:
        hook = model.hook("warmup")
        if hook is not None:
            hook(model.context)
        return hook is not None
    try:
        with open(warmup_file, "rb") as stream:
            body = stream.read()
    except OSError as error:
        raise LoadError(f"warmup file {warmup_file}: {error.strerror}") from error
    content_type = mimetypes.guess_type(warmup_file)[0] or ""
    request = Request("warmup", [], [Parameter("body", content_type, body)])
    try:
        item = predict(model.handle, model.context, [request])[0]
    except InvalidReply as failure:
        raise LoadError(f"warmup file {warmup_file}: {failure}") from failure
    finally:
        model.context.end_batch()
    if item.status >= _ERROR_STATUS:
        said = item.body[:200].decode("utf-8", "replace")
        raise LoadError(f"warmup file {warmup_file}: answered {item.status} {item.phrase} {said}")
    return True


def after_fork(model: LoadedModel) -> None:
    """Run the handler's `after_fork(context)`, if any: the last that a worker does for its model before it serves."""
    hook = model.hook("after_fork")
    if hook is not None:
        hook(model.context)
