"""Settings as a configuration file again: what `check` prints as the effective configuration.

Every key is written, defaults too; what is unset is left out, because leaving it out is how it is
said. What is printed loads to the same settings, except that secrets are masked unless they are
asked for.
"""

from __future__ import annotations

from modelsupervisor.config.keys import ENV_PREFIX, MODEL_KEYS, SUPERVISOR_KEYS, Key
from modelsupervisor.config.reports import MASK, is_secret, printable
from modelsupervisor.config.settings import ModelSettings, Settings, SupervisorSettings


def render_settings(settings: Settings, *, show_secrets: bool = False) -> str:
    """The effective configuration as INI text, ending in a newline."""
    blocks = [
        [f"# effective settings of {printable(settings.source)}"],
        ["[supervisor]", *_lines(SUPERVISOR_KEYS, settings.supervisor)],
    ]
    for model in settings.models:
        lines = [f"[model:{model.name}]", *_lines(MODEL_KEYS, model)]
        for name, value in model.env.items():
            shown = MASK if is_secret(name) and not show_secrets else value
            lines.append(f"{ENV_PREFIX}{name} = {shown}".rstrip())
        blocks.append(lines)
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _lines(keys: tuple[Key, ...], settings: SupervisorSettings | ModelSettings) -> list[str]:
    lines = []
    for key in keys:
        value = getattr(settings, key.name)
        if value is not None:
            lines.append(f"{key.name} = {key.type.show(value)}")
    return lines
