"""The settings of a run beside the table that they come from: what `plan` shows of them. Pure; secrets are masked."""

from __future__ import annotations

from typing import NamedTuple

from modelsupervisor.config.keys import (
    ENV_PREFIX,
    ENV_ROW,
    MODEL_KEYS,
    SUPERVISOR_KEYS,
    Key,
)
from modelsupervisor.config.reports import MASK, is_secret
from modelsupervisor.config.settings import ModelSettings, SupervisorSettings


class Setting(NamedTuple):
    """One setting as INI text. `value` None is unset, `default` None is that there is none; `unset` says what that means.
    `differs`: it is not the default.
    """

    key: str
    value: str | None
    default: str | None
    unset: str
    differs: bool
    type: str
    sentence: str


def settings_in_force(settings: SupervisorSettings | ModelSettings) -> tuple[Setting, ...]:
    """Every setting of a section in the order of the table; a model's variables follow."""
    if isinstance(settings, SupervisorSettings):
        return tuple(_setting(key, settings) for key in SUPERVISOR_KEYS)
    variables = tuple(
        Setting(
            f"{ENV_PREFIX}{name}",
            MASK if is_secret(name) else value,
            None,
            ENV_ROW.default,
            True,
            ENV_ROW.type,
            ENV_ROW.sentence,
        )
        for name, value in settings.env.items()
    )
    return (*(_setting(key, settings) for key in MODEL_KEYS), *variables)


def _setting(key: Key, settings: SupervisorSettings | ModelSettings) -> Setting:
    value = getattr(settings, key.name)
    default = None if key.default is None else key.type.parse(key.default)
    shown = key.default if value == default else key.type.show(value)
    return Setting(
        key=key.name,
        value=shown,
        default=key.default,
        unset=key.unset,
        differs=value != default,
        type=key.type.name,
        sentence=key.sentence,
    )
