"""Print what the project needs, with the extras that are named: `python requirements_of.py train > requirements.txt`.

The Dockerfile installs it before the code is there, so that a change of the code does not install it all anew. Reads
`pyproject.toml` beside itself or in the folder above.
"""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Print a line for each requirement; an extra that does not exist ends with exit status 2."""
    file = next(folder / "pyproject.toml" for folder in (HERE, HERE.parent) if (folder / "pyproject.toml").exists())
    project = tomllib.loads(file.read_text())["project"]
    extras = project["optional-dependencies"]
    if unknown := sorted(set(sys.argv[1:]) - set(extras)):
        print(f"expected extras among {', '.join(extras)}, got {', '.join(unknown)}", file=sys.stderr)
        sys.exit(2)
    for requirement in [*project["dependencies"], *(line for name in sys.argv[1:] for line in extras[name])]:
        print(requirement)


main()
