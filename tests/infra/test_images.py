"""The Dockerfile, by hadolint; what it would install and copy, by pip's names and this tree. No image is built."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.infra.tools import INFRA, ROOT, output_of, tool

DOCKERFILE = INFRA / "Dockerfile"
IMAGES = ("airflow", "ray-cpu", "ray-gpu")


def stages() -> dict[str, str]:
    """The text of each stage by its name."""
    parts = re.split(r"^FROM (.+) AS (\S+)\n", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    return {name: f"FROM {base}\n{body}" for base, name, body in zip(*[iter(parts)] * 3, strict=True)}


def requirements(*extras: str) -> list[Requirement]:
    """What the Dockerfile installs for these extras."""
    return [Requirement(line) for line in output_of(sys.executable, INFRA / "requirements_of.py", *extras).splitlines()]


def test_hadolint_passes() -> None:
    done = subprocess.run([tool("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_user_without_rights(image: str) -> None:
    assert re.findall(r"^USER (.+)$", stages()[image], flags=re.MULTILINE) == ["10001"]


def test_every_base_is_the_argument_that_a_digest_pins() -> None:
    bases = {line.split()[1] for line in DOCKERFILE.read_text().splitlines() if line.startswith("FROM ")}
    assert bases - set(stages()) == {"${BASE}", "scratch"}


@pytest.mark.parametrize("package", ["pipeline", "dags", "trainers"])
def test_a_package_is_copied_and_reaches_the_builder(package: str) -> None:
    assert f"COPY {package} {package}\n" in stages()["source"]
    assert f"!{package}\n" in (INFRA / "Dockerfile.dockerignore").read_text()


def test_whatever_is_copied_is_there_and_reaches_the_builder() -> None:
    """A file that .dockerignore holds back fails the build."""
    allowed = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    for words in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), flags=re.MULTILINE):
        for path in words.split()[:-1]:
            assert (ROOT / path).exists()
            assert f"!{path}" in allowed


def test_the_airflow_image_is_light() -> None:
    """Neither torch nor ray is asked for, by the project or by what it asks for, as far as that is installed here."""
    seen: set[str] = set()
    todo = requirements("airflow")
    while todo:
        wanted = todo.pop()
        if wanted.name.lower() in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(wanted.name.lower())
        try:
            todo += [Requirement(line) for line in distribution(wanted.name).requires or []]
        except PackageNotFoundError:
            pytest.fail(f"{wanted.name} is not installed here")
    assert "apache-airflow-core" in seen
    assert not seen & {"torch", "ray", "deepspeed"}


def test_the_ray_images_hold_what_a_recipe_can_ask_for() -> None:
    names = {wanted.name for wanted in requirements("train", "tensorboard")}
    assert {"torch", "deepspeed", "ray", "tensorboard", "onnxruntime"} <= names


def test_an_unknown_extra_is_refused() -> None:
    command = [sys.executable, str(INFRA / "requirements_of.py"), "trian"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected extras among" in done.stderr


def test_what_the_images_add_is_pinned() -> None:
    """pip installs them under constraints.txt; a name that is missing there would be whatever is newest."""
    pinned = {re.split("[=<>]", line)[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").open()}
    wanted = {w.name.lower() for w in requirements("airflow-server", "train", "tensorboard")} - {"torch"}
    assert wanted <= pinned


def test_the_airflow_image_starts_dags_by_itself(tmp_path: Path) -> None:
    """Airflow's own reading of the image's environment; compose.yaml and the chart's values say nothing else."""
    (assignments,) = re.findall(r"^ENV ((?:.*\\\n)*.+)", stages()["airflow"], flags=re.MULTILINE)
    variables = dict(word.split("=", 1) for word in shlex.split(assignments.replace("\\\n", " ")))
    script = "from airflow.configuration import conf; print(conf.getboolean('core', 'dags_are_paused_at_creation'))"
    output = output_of(sys.executable, "-c", script, cwd=tmp_path, env={**variables, "AIRFLOW_HOME": str(tmp_path)})
    assert output.splitlines()[-1] == "False"
    for other in ("compose.yaml", "kubernetes/airflow-values.yaml"):
        assert "paused_at_creation" not in (INFRA / other).read_text().lower()
