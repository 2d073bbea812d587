"""A test waits for what it needs, and not for a time in which that should have come."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Function -> why time itself is what is tested there.
TIME_ITSELF = {
    "gateway/test_limits.py::test_a_probe_that_could_not_be_made_says_nothing": "nothing happens",
    "gateway/test_limits.py::test_a_kept_connection_may_rest": "a client that rests",
    "gateway/test_limits.py::test_a_slow_body_is_taken": "a slow client",
    "benchmarks/test_gateway_benchmark.py::post": "a slow server",
}


def _sleeps(tree: ast.AST, function: str = "", looking: bool = False) -> set[str]:
    """The functions that sleep elsewhere than between two looks of a loop that ends early."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= _sleeps(node, node.name)
        else:
            found |= _sleeps(node, function, looking or _looks(node))
            if isinstance(node, ast.Call) and not looking and _is_sleep(node):
                found.add(function)
    return found


def _looks(node: ast.AST) -> bool:
    return isinstance(node, ast.While) or (
        isinstance(node, ast.For) and any(isinstance(one, ast.Break) for one in ast.walk(node))
    )


def _is_sleep(call: ast.Call) -> bool:
    """`sleep(0)` only lets others run."""
    return ast.unparse(call.func) in ("time.sleep", "asyncio.sleep", "sleep") and not (
        isinstance(call.args[0], ast.Constant) and call.args[0].value == 0
    )


def test_sleeps_stand_between_two_looks() -> None:
    found = {
        f"{path.relative_to(TESTS)}::{function}"
        for path in TESTS.rglob("*.py")
        for function in _sleeps(ast.parse(path.read_text()))
    }
    assert found == TIME_ITSELF.keys()
