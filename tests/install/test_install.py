"""A server installs without the extras, and whoever needs one is told the command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny import make_tiny
from ps_sglang.extras import EXTRAS, module_of

ROOT = Path(__file__).parents[2]
EXTRA_PACKAGES = {package for packages in EXTRAS.values() for package in packages}
LAUNCH = ("ps_sglang.cli", "launch", "--prefill", "base", "--decoders", "a")
# Tools of those who work on this package; its code asks for none of them.
FOR_DEVELOPERS = {"docs", "dev"}
# Run by every Python process that has its folder on PYTHONPATH, before anything else.
BLOCK = """
import builtins, sys

for package in {everywhere!r}:
    sys.modules[package] = None  # for the import system: there is no such package

import_any = builtins.__import__

def import_installed(name, globals=None, *rest, **named):
    importer = (globals or {{}}).get("__package__") or ""
    if name.partition(".")[0] in {in_ps_sglang!r} and importer.partition(".")[0] == "ps_sglang":
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return import_any(name, globals, *rest, **named)

builtins.__import__ = import_installed
"""


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def names(requirements: Collection[str]) -> set[str]:
    """Packages of requirements as pyproject.toml writes them."""
    return {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements}


def without(
    folder: Path, everywhere: Iterable[str] = (), in_ps_sglang: Collection[str] = ()
) -> dict[str, str]:
    """An environment whose Python processes cannot import these packages."""
    block = BLOCK.format(everywhere=sorted(everywhere), in_ps_sglang=sorted(in_ps_sglang))
    (folder / "sitecustomize.py").write_text(block)
    path = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def run(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_the_code_knows_the_extras_of_the_project() -> None:
    declared = project()["optional-dependencies"]
    assert {name: names(declared[name]) for name in declared.keys() - FOR_DEVELOPERS} == {
        name: set(packages) for name, packages in EXTRAS.items()
    }


def test_a_server_installs_no_package_of_an_extra() -> None:
    assert names(project()["dependencies"]) & EXTRA_PACKAGES == set()


@pytest.mark.parametrize(
    ("words", "extra", "status"),
    [
        (("ps_sglang.cli", "train", "--base", "base", "--data", "x", "--out", "y"), "train", 2),
        (("ps_sglang.demo", "--once"), "demo", 1),
        ((*LAUNCH, "--otlp-endpoint", "http://localhost:4318"), "otel", 2),
    ],
)
def test_a_missing_extra_is_named_with_its_command(
    words: tuple[str, ...], extra: str, status: int, tmp_path: Path
) -> None:
    result = run(without(tmp_path, map(module_of, EXTRA_PACKAGES)), *words)
    assert result.returncode == status, result.stderr
    (line,) = result.stderr.splitlines()
    assert f"needs {', '.join(EXTRAS[extra])}: pip install 'ps-sglang[{extra}]'" in line


@pytest.mark.parametrize("missing", EXTRAS["train"])
def test_only_what_is_missing_is_named(missing: str, tmp_path: Path) -> None:
    words = ("ps_sglang.cli", "train", "--base", "base", "--data", "x", "--out", "y")
    result = run(without(tmp_path, {missing}), *words)
    assert f"training needs {missing}: pip install" in result.stderr


@contextmanager
def launched(environ: dict[str, str], *words: str) -> Iterator[str]:
    """`ps-sglang launch` as a user runs it; its URL. Ends it with Ctrl-C."""
    command = [sys.executable, "-m", "ps_sglang.cli", "launch", "--port", "0", *words]
    said: list[str] = []
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                said.append(line)
                if " ready http" in line:
                    break
            else:
                pytest.fail("".join(said))
            yield line.partition(" ready ")[2].split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.stderr.read()
    assert process.returncode == 0


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_launch_the_gateway_and_verify_need_no_extra(tmp_path: Path) -> None:
    # SGLang itself brings datasets and openai, and imports them.
    environ = without(tmp_path, {"accelerate", "peft"}, {"datasets", "openai"})
    tiny = make_tiny("llama", tmp_path)
    base, a = f"base={tiny['base']}", f"a={tiny['a']}"
    logs = str(tmp_path / "logs")
    with launched(environ, "--prefill", base, "--decoders", a, "--log-dir", logs) as url:
        verify = run(
            environ, "ps_sglang.cli", "verify", "--url", url, "--base", base, "--decoder", a
        )
    assert verify.stdout.splitlines()[-1].startswith("exact: 64/64 prompts"), verify
    assert verify.returncode == 0
