"""Tasks: what decoders are trained for, their data and their scoring."""

from __future__ import annotations

from ps_sglang.training.tasks.items import Item, Message, Split, Task
from ps_sglang.training.tasks.registry import TASK_NAMES, task

__all__ = ["TASK_NAMES", "Item", "Message", "Split", "Task", "task"]
