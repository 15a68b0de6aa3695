"""The commands of the control socket, from the request to its answer.

`status` and `stop` are answered at once, `logs` goes on until its reader leaves, and a restart is an event for the core, whose
answer comes when it has ended, either way.
"""

from __future__ import annotations

from modelsupervisor.control import (
    ControlRequest,
    LogsArguments,
    NoArguments,
    RestartArguments,
    StatusArguments,
    decode_arguments,
)
from modelsupervisor.core.actions import Answer
from modelsupervisor.core.events import (
    RestartModelRequested,
    RestartSlotRequested,
    StopRequested,
)
from modelsupervisor.core.states import Run, SlotKey, State, TemplateKey
from modelsupervisor.errors import ControlError
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.followers import Followers
from modelsupervisor.runtime.operators import Operator, Operators
from modelsupervisor.runtime.report import Reporter
from modelsupervisor.runtime.templates import Templates
from modelsupervisor.runtime.workers import Workers


class Commands:
    """What operators may ask for, and the restarts that some of them wait for."""

    def __init__(
        self,
        edge: Edge,
        operators: Operators,
        reporter: Reporter,
        followers: Followers,
        templates: Templates,
        workers: Workers,
    ) -> None:
        self._edge = edge
        self._operators = operators
        self._reporter = reporter
        self._followers = followers
        self._templates = templates
        self._workers = workers
        self._waiting: dict[int, tuple[Operator, int | str, str]] = {}
        self._count = 0

    def command(self, operator: Operator, request: ControlRequest, state: State) -> None:
        """Carry out a command. Raises ControlError for one that is not."""
        if request.command == "status":
            asked = decode_arguments(request, StatusArguments)
            keys = _named(state, "status", asked.model, asked.index)
            report = self._reporter.status(state, keys, asked.offset)
            self._operators.reply(operator, request.id, report)
        elif request.command == "stop":
            decode_arguments(request, NoArguments)
            self._operators.reply(operator, request.id, {"stopping": True})
            if state.run is not Run.STOPPING:
                self._edge.post(StopRequested(self._edge.now(), "stop command"))
        elif request.command == "restart":
            self._restart(operator, request)
        elif request.command == "logs":
            self._logs(operator, request, state)
        else:
            known = "logs, restart, status, stop"
            raise ControlError(
                "bad_request", f"unknown command {request.command!r}; there are: {known}"
            )

    def _logs(self, operator: Operator, request: ControlRequest, state: State) -> None:
        asked = decode_arguments(request, LogsArguments)
        _named(state, "logs", asked.model, asked.index)
        self._operators.reply(operator, request.id, {"streaming": True})
        self._followers.add(self._operators, operator, asked)

    def _restart(self, operator: Operator, request: ControlRequest) -> None:
        asked = decode_arguments(request, RestartArguments)
        self._count += 1
        self._waiting[self._count] = (operator, request.id, asked.model)
        now = self._edge.now()
        if asked.index is None:
            self._edge.post(RestartModelRequested(asked.model, self._count, now))
        else:
            key = SlotKey(asked.model, asked.index)
            self._edge.post(RestartSlotRequested(key, self._count, now))

    def answer(self, answer: Answer, state: State) -> None:
        """Tell whoever waits for a restart how it ended."""
        operator, id_, model = self._waiting.pop(answer.command)
        if not answer.ok:
            self._operators.fail(operator, id_, answer.code, answer.message)
            return
        workers = []
        for key in answer.keys:
            worker = self._workers.present(key)
            if worker is not None:
                found = {"index": key.index, "generation": worker.generation, "pid": worker.pid}
                workers.append(found)
        self._operators.reply(operator, id_, {"model": model, "workers": workers})
        current = state.models[model].current
        if self._edge.plans[model].model_cache is not None and current is not None:
            self._templates.sweep(TemplateKey(model, current))  # of what the old workers used


def _named(state: State, command: str, model: str | None, index: int | None) -> list[SlotKey]:
    """The slots that a command names: all, those of a model, or one. Raises ControlError where there are none."""
    if model is None:
        if index is not None:
            raise ControlError("bad_request", f"{command}: an index without a model")
        return list(state.slots)
    keys = [key for key in state.slots if key.model == model]
    if not keys:
        models = ", ".join(sorted({key.model for key in state.slots}))
        raise ControlError("not_found", f"no model {model!r}; there are: {models}")
    chosen = [key for key in keys if index is None or key.index == index]
    if not chosen:
        raise ControlError("not_found", f"no worker {model}/{index}; there are {len(keys)}")
    return chosen
