"""Who may import whom: arrows go downwards, between rooms and inside them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ps_sglang.extras import EXTRAS, module_of

ROOT = Path(__file__).parents[2]
PRODUCT = ROOT / "ps_sglang"

# From the top to the bottom; those of one line do not know each other.
FLOORS = (
    ("cli", "demo"),
    ("training",),
    ("verify",),
    ("launch", "keys"),
    ("gateway", "status", "decoders", "frontend", "monitoring"),
    ("workers",),
    ("engine",),
    ("events", "models"),
    ("contract",),
    ("gateway_admin", "wires"),
    (
        "cluster_key",
        "gateway_http",
        "worker_info",
        "output_ids",
        "priority",
        "tensor_parallel",
        "sglang_names",
        "open_files",
    ),
    ("parser", "extras", "home", "progress", "model_roots"),
    ("errors",),
)
GATEWAY = (
    ("__main__",),
    ("app",),
    ("server",),
    ("routes",),
    ("state", "listener", "cors"),
    ("peers",),
    ("workers",),
    ("dispatch",),
    ("telemetry",),
    ("routing",),
    ("bodies",),
    ("index",),
    ("access",),
    ("errors",),
    ("config", "refusals", "ids", "gc_control", "paths"),
    ("limits",),
)
ENGINE = (
    ("plugin", "platform"),  # SGLang's two entry points
    ("hooks",),
    ("handoff", "guard", "swap", "preload", "cpu_platform", "answers", "aggregated"),
    ("trace", "worker_info", "kv_pool"),
    ("output_ids",),
    ("access",),
    ("events",),
    ("tree", "transfer"),
    ("sampling", "attention", "lora", "waiting", "metrics", "shared_weights"),
    ("request_state", "hooking", "settings", "machine_code"),
    ("compat",),
)
FORBIDDEN = {
    "gateway": ("torch", "sglang", "transformers"),
    "events": ("torch", "sglang"),
    "contract": ("torch", "sglang"),
    "workers": ("torch", "sglang"),
    "status": ("torch", "sglang"),
    "decoders": ("torch", "sglang"),
    "keys": ("torch", "sglang"),
    "models": ("sglang",),
    "training": ("sglang",),
    "verify": ("sglang",),
}
# An install for a server is without them.
EXTRAS_ONLY = {module_of(package) for packages in EXTRAS.values() for package in packages}
NEEDS_EXTRAS = (
    "ps_sglang.training",
    "ps_sglang.demo",
    "ps_sglang.gateway.telemetry.otel",
    "ps_sglang.launch.ray.actor",
    "ps_sglang.launch.ray.session",
)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def arrows() -> dict[str, set[str]]:
    """Each module of the product with the modules that it imports, foreign ones by full name."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PRODUCT.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        found[name] = set()
        for target in _imported(ast.parse(path.read_text())):
            known = target
            while known and known not in names:
                known = known.rpartition(".")[0]
            found[name].add(known or target)
        found[name].discard(name)
    return found


def test_no_module_imports_itself_by_a_detour() -> None:
    circles = []
    for start in arrows():
        seen: set[str] = set()
        ahead: list[tuple[str, tuple[str, ...]]] = [(start, (start,))]
        while ahead:
            module, path = ahead.pop()
            for target in arrows().get(module, ()):
                if target == start:
                    circles.append(" -> ".join((*path, start)))
                elif target not in seen:
                    seen.add(target)
                    ahead.append((target, (*path, target)))
    assert not circles


@pytest.mark.parametrize(
    ("room", "floors"),
    [("ps_sglang", FLOORS), ("ps_sglang.gateway", GATEWAY), ("ps_sglang.engine", ENGINE)],
)
def test_arrows_go_downwards(room: str, floors: tuple[tuple[str, ...], ...]) -> None:
    height = {name: level for level, names in enumerate(floors) for name in names}
    problems = set()
    for module, targets in arrows().items():
        for target in targets:
            here, there = _part(module, room), _part(target, room)
            if here is None or there is None or here == there:
                continue
            assert here in height, f"{here} has no floor in {room}"
            assert there in height, f"{there} has no floor in {room}"
            if height[here] >= height[there]:
                problems.add(f"{module} -> {target}")
    assert not problems


def _part(module: str, room: str) -> str | None:
    """The part of `room` that a module belongs to."""
    if not module.startswith(room + "."):
        return None
    return module.removeprefix(room + ".").partition(".")[0]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_borders(room: str) -> None:
    foreign = {
        f"{module} -> {target}"
        for module, targets in arrows().items()
        if module.startswith(f"ps_sglang.{room}")
        for target in targets
        if target.partition(".")[0] in FORBIDDEN[room]
    }
    assert not foreign


def test_a_server_needs_no_extra() -> None:
    assert {"accelerate", "peft", "datasets", "openai", "opentelemetry.sdk"} <= EXTRAS_ONLY
    server = {
        f"{module} -> {target}"
        for module, targets in arrows().items()
        if not any(_is_in(module, one) for one in NEEDS_EXTRAS)
        for target in targets
        if any(_is_in(target, one) for one in EXTRAS_ONLY)
    }
    assert not server


def _is_in(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def test_sglangs_inside_is_imported_in_one_place() -> None:
    outside = {
        module
        for module, targets in arrows().items()
        if any(target.startswith("sglang.srt") for target in targets)
        and not module.startswith("ps_sglang.engine.compat")
    }
    assert not outside


def test_no_class_name_in_two_modules() -> None:
    homes: dict[str, list[str]] = {}
    for path in PRODUCT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: files for name, files in homes.items() if len(files) > 1}
