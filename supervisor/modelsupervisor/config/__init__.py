"""The configuration file, read once into frozen, typed settings; all its mistakes at once.

keys.py       the one table: key, type, default, sentence; what is not in it does not exist
values.py     how the text of a value becomes a value, and back (pure)
paths.py      values that name something on disk: folders, archives, files
handlers.py   the handler of a model, and its file in the folder or archive
ini.py        the file's lines become sections and entries that know their line
reports.py    how a mistake is worded for the operator; secrets are masked here
load.py       `load_settings`: all of the above in order
settings.py   the result
render.py     the result as an INI file again
in_force.py   the result beside the table: what differs from its default
locate.py     the run directory of a file, whatever else is wrong with it
names.py      the file names that a configuration leads to, and what can be wrong with them
"""

from __future__ import annotations

from modelsupervisor.config.in_force import Setting, settings_in_force
from modelsupervisor.config.keys import KeyRow, describe_keys
from modelsupervisor.config.load import load_settings
from modelsupervisor.config.locate import locate
from modelsupervisor.config.names import SOCKET_PATH_LIMIT, socket_path_problems
from modelsupervisor.config.render import render_settings
from modelsupervisor.config.reports import is_secret, model_problem
from modelsupervisor.config.settings import (
    CpuChoice,
    ModelSettings,
    Settings,
    SupervisorSettings,
    ThreadChoice,
)

__all__ = [
    "SOCKET_PATH_LIMIT",
    "CpuChoice",
    "KeyRow",
    "ModelSettings",
    "Setting",
    "Settings",
    "SupervisorSettings",
    "ThreadChoice",
    "describe_keys",
    "is_secret",
    "load_settings",
    "locate",
    "model_problem",
    "render_settings",
    "settings_in_force",
    "socket_path_problems",
]
