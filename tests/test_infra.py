"""What `infra/` holds is checked by the real tools."""

import subprocess
import sys
from pathlib import Path

INFRA = Path(__file__).parent.parent / "infra"


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, INFRA / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_images_copy_every_package() -> None:
    text = (INFRA / "Dockerfile").read_text()
    for package in ("pipeline", "dags", "trainers"):
        assert f"COPY {package} {package}" in text
