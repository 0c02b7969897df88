"""ray-up.yaml, by Ray's own validation of such files, and its machines by EC2's description of RunInstances."""

import copy
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator

from tests.infra.test_images import IMAGES
from tests.infra.tools import INFRA

FILE = INFRA / "ray-up.yaml"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """The file."""
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` completes it; it must be valid."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(copy.deepcopy(written))
    validate_config(config)
    return config


def test_ray_takes_it(prepared: dict[str, Any]) -> None:
    assert prepared["head_node_type"] == "head"
    types = prepared["available_node_types"]
    assert (types["head"]["resources"]["CPU"], types["gpu"]["resources"]["GPU"]) == (0, 8)
    assert types["gpu"]["max_workers"] == prepared["max_workers"]


def test_ray_refuses_a_misspelt_key(written: dict[str, Any]) -> None:
    """The check above can fail."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    wrong = copy.deepcopy(written)
    wrong["available_node_types"]["gpu"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("kind", ["head", "gpu"])
def test_ec2_knows_the_parameters_of_a_machine(written: dict[str, Any], kind: str) -> None:
    """As boto3 checks a call before it sends it."""
    machine = written["available_node_types"][kind]["node_config"]
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert shape is not None
    report = ParamValidator().validate({**machine, "MinCount": 1, "MaxCount": 1}, shape)
    assert not report.has_errors(), report.generate_report()
    wrong = ParamValidator().validate({**machine, "InstanceTyp": "m7i.large", "MinCount": 1, "MaxCount": 1}, shape)
    assert wrong.has_errors()


def test_it_runs_our_images_with_a_token(written: dict[str, Any]) -> None:
    docker = written["docker"]
    for role in ("head", "worker"):
        assert docker[f"{role}_image"].partition(":")[0].removeprefix("REGISTRY/atelier-") in IMAGES
    assert "--env RAY_AUTH_MODE=token" in docker["run_options"]
    (mounted,) = written["file_mounts"]
    assert f"--env RAY_AUTH_TOKEN_PATH={mounted}" in docker["run_options"]
    assert f"infra/{written['file_mounts'][mounted]}\n" in (INFRA.parent / ".gitignore").read_text()


def test_the_dashboard_is_on_loopback(written: dict[str, Any]) -> None:
    """`ray dashboard` forwards it by SSH."""
    assert "--dashboard-host=127.0.0.1" in " ".join(written["head_start_ray_commands"])
