"""The container file: its lock fits the project, and it agrees with the manifests.

It is not built here, which takes a registry of images.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from ps_sglang.extras import EXTRAS
from ps_sglang.launch.gpus.transport import DEFAULT_BACKEND
from ps_sglang.launch.kubernetes import objects

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
CONTAINERFILE = (LAUNCH / "Containerfile").read_text()


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def pins(name: str) -> dict[str, str]:
    """Version by package."""
    lines = (LAUNCH / name).read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert len(pinned) == sum(not line.startswith("#") for line in lines)
    return pinned


@pytest.mark.parametrize(
    "requirement", [*project()["dependencies"], *project()["optional-dependencies"]["otel"]]
)
def test_the_lock_fits_the_project(requirement: str) -> None:
    wanted = Requirement(requirement)
    assert pins("requirements.lock")[canonicalize_name(wanted.name)] in wanted.specifier


def test_the_lock_has_what_builds_the_package() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for requirement in map(Requirement, build):
        assert pins("requirements.lock")[requirement.name] in requirement.specifier


def test_gpus_have_the_default_way_of_pages() -> None:
    (package,) = EXTRAS[DEFAULT_BACKEND]
    assert package in pins("requirements-cuda.lock")
    (cuda,) = re.findall(r"nvidia/(cu\d+)", CONTAINERFILE)
    assert package.endswith(cuda.replace("cu", "cuda"))


def test_the_image_is_of_this_repository() -> None:
    for line in re.findall(r"^COPY (.+) /build/\S*$", CONTAINERFILE, re.MULTILINE):
        assert all((ROOT / path).exists() for path in line.split())
    (python,) = set(re.findall(r"python:?(3\.\d+)", CONTAINERFILE))
    assert python in SpecifierSet(project()["requires-python"])
    (entry,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', CONTAINERFILE, re.MULTILINE)
    assert entry in project()["scripts"]


def test_pods_run_as_the_images_user() -> None:
    assert f"USER {objects.USER}:{objects.USER}\n" in CONTAINERFILE
    assert f"useradd --uid {objects.USER} " in CONTAINERFILE
