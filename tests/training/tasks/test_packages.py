"""Packages that are not there, or not in the version that the items come from."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ps_sglang.errors import MissingPackageError
from ps_sglang.training.tasks import packages
from ps_sglang.training.tasks.math import _module
from ps_sglang.training.tasks.packages import package_file
from tests.training.tasks.task_setup import needs


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages.VERSIONS, "no-such-package-here", "1.2.3")
    with pytest.raises(MissingPackageError) as caught:
        package_file("no-such-package-here", "x.json")
    assert "not installed here; run: pip install --no-deps no-such-package-here==1.2.3" in str(
        caught.value
    )


def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages.VERSIONS, "pytest", "1.0")
    with pytest.raises(MissingPackageError) as caught:
        package_file("pytest", "pytest/__init__.py")
    assert f"come from pytest 1.0, and {pytest.__version__} is installed here" in str(caught.value)


def test_a_file_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages.VERSIONS, "pytest", pytest.__version__)
    with pytest.raises(MissingPackageError, match=r"lacks its file pytest/no\.json"):
        package_file("pytest", "pytest/no.json")


@needs("reasoning-gym")
def test_a_bare_import_leaves_no_module_behind() -> None:
    assert _module("chain_sum").ChainSumDataset
    assert not [name for name in sys.modules if name.startswith("reasoning_gym")]


@pytest.mark.parametrize("name", ["code", "tools", "math", "humaneval", "gsm8k"])
def test_tasks_import_nothing_heavy(name: str) -> None:
    program = (
        f"import sys; from ps_sglang.training.tasks import task; task({name!r})\n"
        "print({'torch', 'sglang', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
