"""What waits for a time or measures one reads a clock that nobody can set."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Function -> why it has to be the wall clock there.
WALL_CLOCK = {
    "engine/trace.py::_unix": "moments of two hosts",
    "engine/transfer/endpoints.py::_as_wall_time": "SGLang's time limits",
    "gateway/access/rates.py::anthropic_headers": "Anthropic's header",
    "gateway/bodies/responses_answer.py::__init__": "OpenAI's `created_at`",
    "gateway/index/jinja_environment.py::chat_environment": "a chat template's date",
    "gateway/routes/live.py::_describe": "the page",
    "gateway/state.py::Gateway": "OpenAI's `created`, the page",
    "gateway/telemetry/log.py::line_of": "the log",
    "gateway/telemetry/otel.py::begin": "OpenTelemetry's spans",
    "gateway/telemetry/otel.py::end": "OpenTelemetry's spans",
    "launch/prepare.py::_log_dir": "a folder's name",
    "training/machine.py::environment": "the date of a measurement",
}
_READS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}


def _readers(tree: ast.AST, place: str = "") -> set[str]:
    """The functions, or else classes, that read the wall clock."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        name = (
            node.name
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            else place
        )
        if isinstance(node, ast.Attribute) and ast.unparse(node) in _READS:
            found.add(place)
        found |= _readers(node, name)
    return found


def test_only_moments_that_are_told_come_from_the_wall_clock() -> None:
    product = ROOT / "ps_sglang"
    found = {
        f"{path.relative_to(product)}::{place}"
        for path in product.rglob("*.py")
        for place in _readers(ast.parse(path.read_text()))
    }
    assert found == WALL_CLOCK.keys()
