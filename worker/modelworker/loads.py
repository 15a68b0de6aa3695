"""`L` on a worker's socket: serve this model. It is the one that is served anyway, unless `allow_load` lets clients choose.

Then a worker loads what it is asked for, in its own process, and serves that from then on; until it has loaded, been warmed and run
`after_fork`, nothing has changed: the model before it is kept, and served on where the new one does not load. Both may call their
handler's module `service`: the modules of the one are put aside while the other's are imported. What either imported of frameworks
stays, and so does the memory that the template shares. The successor of such a worker serves the configured model.

Answered as MMS does: 200 with the process's id, 507 where the memory did not suffice, else 400 or 500 with the reason.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from types import ModuleType
from typing import Callable, Dict, List, Tuple

from modelworker import loader, readiness
from modelworker.channel import tail
from modelworker.complaints import complaint
from modelworker.wire import LoadCommand, encode_load_response

LONGEST_REASON = 2048  # characters of a reason that a reply or an event carries
# Below a model's folder, but of an environment that lies in it: frameworks cannot be imported twice
_LIBRARIES = frozenset(("site-packages", "dist-packages"))
_OF_PYTHON = tuple(os.path.dirname(os.path.realpath(file)) for file in (os.__file__, __file__))


def answer_load(
    model: loader.LoadedModel, command: LoadCommand, allowed: bool, event: Callable[..., None]
) -> Tuple[loader.LoadedModel, bytes]:
    """The model to serve from now on and the reply to `L`, in a worker that serves `model`.

    `allowed` is `allow_load`; `event(level, name, **facts)` has the supervisor log what was tried.
    """
    name, path = command.model_name, command.model_path
    if name == model.name and model.is_at(path):
        return model, _loaded(name)
    if not allowed:
        said = f"model {name!r} at {path!r} is not served here; "
        said += f"expected {model.name!r} at {model.path!r}"
        return model, encode_load_response(409, said)
    asked = {"name": name, "path": path, "handler": command.handler}
    try:
        ready = _exchange(model, command)
    # Whatever the other handler raises is its failure, and no reason to stop serving this one
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is a model's code, and told whole
        told = complaint(error)
        code = 507 if told["memory"] else 400 if isinstance(error, loader.LoadError) else 500
        # A handler's words may hold what no UTF-8 can
        said = tail(told["error"].encode("utf-8", "backslashreplace").decode(), LONGEST_REASON)
        whole = tail(told["traceback"], LONGEST_REASON)
        event("warning", "worker.model_refused", **asked, code=code, error=said, traceback=whole)
        return model, encode_load_response(code, said)
    event("info", "worker.model_loaded", **asked, **ready.facts)
    return ready.model, _loaded(name)


def _loaded(name: str) -> bytes:
    return encode_load_response(200, f"loaded model {name}. [PID]:{os.getpid()}")


def _exchange(present: loader.LoadedModel, command: LoadCommand) -> readiness.Ready:
    """Load the model that is asked for, or raise what kept it from that, with everything as it was."""
    spec = _spec(present, command)
    asked = os.path.realpath(spec.path)  # what is no path at all ends here
    before, folder = list(sys.path), os.getcwd()
    aside = _modules_of(present.path)
    for name in aside:
        del sys.modules[name]
    others = frozenset(sys.modules)
    sys.path[:] = [entry for entry in sys.path if not _is_of(entry, present.path)]
    importlib.invalidate_caches()
    try:
        ready = readiness.load_and_warm(spec)
        loader.after_fork(ready.model)
    except BaseException:
        for name in _modules_of(asked).keys() - others:
            del sys.modules[name]
        sys.modules.update(aside)
        sys.path[:] = before
        os.chdir(folder)
        raise
    gc.unfreeze()  # the model before it is to be collected, once it is let go
    return ready


def _spec(present: loader.LoadedModel, command: LoadCommand) -> loader.ModelSpec:
    """What `L` asks for; a worker that was given a GPU keeps to it."""
    own = present.context.system_properties
    gpu = command.gpu_id if own["gpu_id"] is None else own["gpu_id"]
    return loader.ModelSpec(
        name=command.model_name,
        path=command.model_path,
        handler=command.handler,
        batch_size=max(1, command.batch_size),
        gpu_id=gpu,
        server_version=own["server_version"],
        warmup=None,
    )


def _modules_of(folder: str) -> Dict[str, ModuleType]:
    """The modules that were imported from a model's folder."""
    return {
        name: module
        for name, module in list(sys.modules.items())
        if any(_is_of(path, folder) for path in _places(module))
    }


def _places(module: ModuleType) -> List[str]:
    """Where a module lies: its file, or the folders of a package that has none."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return [file]
    try:
        return [path for path in getattr(module, "__path__", ()) if isinstance(path, str)]
    except TypeError:  # a stand-in that some library put there
        return []


def _is_of(path: str, folder: str) -> bool:
    """True where a path belongs to the model of that folder, and not to the environment that it may run in."""
    try:
        real = os.path.realpath(path or ".")
        if os.path.commonpath([real, folder]) != folder:
            return False
        if any(os.path.commonpath([real, own]) == own for own in _OF_PYTHON):
            # Unless it is the folder that lies in there
            return any(os.path.commonpath([folder, own]) == own for own in _OF_PYTHON)
        return _LIBRARIES.isdisjoint(os.path.relpath(real, folder).split(os.sep))
    except ValueError:  # a NUL in it
        return False
