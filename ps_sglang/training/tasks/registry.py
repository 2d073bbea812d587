"""Tasks by name."""

from __future__ import annotations

import importlib
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.training.tasks.items import Task

# Name -> where its class is; imported on demand, for some read the data of a package.
_CLASSES: Final = {
    "code": ("ps_sglang.training.tasks.code", "CodeTask"),
    "tools": ("ps_sglang.training.tasks.tools", "ToolsTask"),
    "math": ("ps_sglang.training.tasks.math", "MathTask"),
    "humaneval": ("ps_sglang.training.tasks.humaneval", "HumanEvalTask"),
    "gsm8k": ("ps_sglang.training.tasks.gsm8k", "Gsm8kTask"),
    "bfcl-live-simple": ("ps_sglang.training.tasks.tools", "LiveSimpleTask"),
}
TASK_NAMES: Final = tuple(_CLASSES)


def task(name: str) -> Task:
    """The task of this name; UsageError that lists the known ones otherwise."""
    if name not in _CLASSES:
        raise UsageError(f"no task {name!r}; the tasks are: {', '.join(TASK_NAMES)}")
    module, class_name = _CLASSES[name]
    made: Task = getattr(importlib.import_module(module), class_name)()
    return made
