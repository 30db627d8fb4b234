"""The wheel holds exactly what the folders hold, under one top-level name (docs/api.md section 4)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy import source


def _content(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that a build folder left in the checkout can't lend it files."""
    copy = tmp_path_factory.mktemp("wheel") / "halfmsg"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(source.ROOT / name, copy)
    for name in ("halfmsg", *source.LINKED):
        shutil.copytree(source.ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def _names(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if not name.endswith("/")}


def test_wheel_has_every_file_of_the_folders_and_no_other(wheel: zipfile.ZipFile) -> None:
    """A clone without links would build an empty wheel without a word; a missing .sql would be found by a user."""
    expected = {f"halfmsg/{path.relative_to(source.ROOT).as_posix()}" for folder in source.LINKED for path in _content(source.ROOT / folder)}
    expected |= {f"halfmsg/{path.name}" for path in (source.ROOT / "halfmsg").iterdir() if path.is_file()}
    packed = {name for name in _names(wheel) if ".dist-info/" not in name}
    assert {"missing": expected - packed, "extra": packed - expected} == {"missing": set(), "extra": set()}


def test_wheel_claims_no_plain_name(wheel: zipfile.ZipFile) -> None:
    """`coordinator` and `outbox` are other people's packages."""
    assert {name.partition("/")[0] for name in _names(wheel) if ".dist-info/" not in name} == {"halfmsg"}


def test_wheel_is_typed_licensed_and_has_the_command(wheel: zipfile.ZipFile) -> None:
    """What a user's tools look for."""
    names = _names(wheel)
    assert "halfmsg/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    [entry] = [name for name in names if name.endswith("/entry_points.txt")]
    assert "halfmsg = halfmsg.coordinator.cli:main" in wheel.read(entry).decode()
