"""The folder under test, and the programs that check it: those that the extra `dev` installs beside this Python."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def tool(name: str) -> str:
    """The path of a program of this environment."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{name} is not installed: pip install --editable '.[dev]'"
    return str(path)


def output_of(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """What a command prints; it must succeed. `variables` are added to a small environment, not to this process's."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(cwd), **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
