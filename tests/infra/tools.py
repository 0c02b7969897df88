"""The folder under test, and the programs that check it: those that the extra `dev` installs beside this Python."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def tool(name: str) -> str:
    """The path of a program of this environment."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{name} is not installed: pip install --editable '.[dev]'"
    return str(path)


def output_of(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """What a command prints; it must succeed. `env` is added to a small environment, not to this process's."""
    small = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(cwd)}
    done = subprocess.run(command, cwd=cwd, env={**small, **(env or {})}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def terraform() -> str:
    """The path of Terraform or OpenTofu, which no Python package brings; without one, CI fails and others skip."""
    found = shutil.which("terraform") or shutil.which("tofu")
    if found is None:
        message = "infra/terraform is not checked: neither terraform nor tofu is installed"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return found
