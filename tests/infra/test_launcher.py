"""ray-up.yaml, by Ray's own validation of such files, and its machines by EC2's description of RunInstances."""

import contextlib
import copy
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator

from tests.infra.test_images import IMAGES, stages
from tests.infra.tools import INFRA, ROOT, output_of

README = (INFRA / "README.md").read_text()
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
    assert f"{written['file_mounts'][mounted]}\n" in (ROOT / ".gitignore").read_text()


def test_the_dashboard_is_on_loopback(written: dict[str, Any]) -> None:
    """`ray dashboard` forwards it by SSH."""
    assert "--dashboard-host=127.0.0.1" in " ".join(written["head_start_ray_commands"])


def test_ray_finds_the_token_from_where_it_is_told_to_run(
    written: dict[str, Any], prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's line makes it; `ray up` then reads what it mounts, to see whether it has changed."""
    from ray.autoscaler._private.util import hash_runtime_conf

    (tmp_path / "infra").mkdir()
    (make,) = re.findall(r"^    (openssl .+)$", README, flags=re.MULTILINE)
    subprocess.run(["sh", "-c", make], cwd=tmp_path, check=True, umask=0o077)
    assert "ray up infra/ray-up.yaml" in README
    monkeypatch.chdir(tmp_path)
    hash_runtime_conf(prepared["file_mounts"], None, written)
    token = tmp_path / prepared["file_mounts"]["/home/atelier/ray-token"]
    assert len(token.read_text().strip()) == 64
    assert token.stat().st_mode & 0o004  # the image's user is another than the machine's, and rsync keeps the mode


class Recorder:
    """In place of `subprocess`: the commands that Ray would run."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self) -> None:
        self.commands: list[str] = []

    def check_call(self, command: list[str], **_: Any) -> int:
        """Do nothing, well."""
        self.commands.append(" ".join(command))
        return 0

    def check_output(self, command: list[str], **_: Any) -> bytes:
        """A container runs."""
        self.check_call(command)
        return b"true"


def test_the_images_have_what_ray_runs_in_them(written: dict[str, Any]) -> None:
    """From outside `docker exec` starts rsync in the container; a container's head reaches others by rsync over ssh."""
    from ray.autoscaler._private.command_runner import DockerCommandRunner

    recorder = Recorder()
    runner = DockerCommandRunner(
        written["docker"],
        log_prefix="",
        node_id="i-0",
        provider=SimpleNamespace(external_ip=lambda _: "10.0.0.1"),
        auth_config=written["auth"],
        cluster_name=written["cluster_name"],
        process_runner=recorder,
        use_internal_ip=False,
    )
    runner.run_rsync_up(str(FILE), "/home/atelier/ray_bootstrap_config.yaml")
    assert any(re.match(r"rsync --rsh ssh ", command) for command in recorder.commands)
    assert any(re.search(r"rsync -e \S*docker exec -i", command) for command in recorder.commands)
    assert any(command.startswith("ssh ") for command in recorder.commands)
    for image in ("ray-cpu", "ray-gpu"):
        assert stages()[image].startswith("FROM runtime-ray\n")
    (installed,) = re.findall(r"apt-get install .+ --yes (.+) \\", stages()["runtime-ray"])
    assert set(installed.split()) == {"openssh-client", "rsync"}


def test_a_login_shell_finds_ray(tmp_path: Path) -> None:
    """Ray runs all in such shells; for them Debian's /etc/profile sets PATH anew, then reads profile.d."""
    from ray.autoscaler._private.command_runner import _with_interactive

    assert "--login" in _with_interactive("ray stop")
    ((line, file),) = re.findall(r"&& (echo .+ > (/etc/profile\.d/\S+\.sh))$", stages()["runtime-ray"], re.MULTILINE)
    (built_with,) = re.findall(r"^ENV PATH=(\S+)", stages()["runtime"], flags=re.MULTILINE)
    path = built_with.replace("$PATH", "/usr/bin:/bin")
    here = tmp_path / "atelier.sh"
    subprocess.run(["/bin/sh", "-c", line.replace(file, str(here))], env={"PATH": path}, check=True)
    read = ["/bin/sh", "-c", f'. {here}; echo "$PATH"']
    assert output_of(*read).strip() == path == "/opt/venv/bin:/usr/bin:/bin"


def test_the_head_may_do_what_ray_does_there(written: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's provider starts, tags, lists and ends a machine; what it asks of EC2 is what Terraform's policy grants."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    asked: dict[str, dict[str, Any]] = {}
    machine = {"InstanceId": "i-0", "State": {"Name": "running"}, "StateReason": {"Message": ""}, "Tags": []}
    answers: dict[str, dict[str, Any]] = {
        "RunInstances": {"Instances": [machine]},
        "DescribeInstances": {"Reservations": [{"Instances": [machine]}]},
    }

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        asked[model.name] = copy.deepcopy(params)

    def answer(model: Any, **_: Any) -> tuple[Any, dict[str, Any]]:
        return SimpleNamespace(status_code=200), answers.get(model.name, {})

    provider = AWSNodeProvider(written["provider"], written["cluster_name"])
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register("before-parameter-build.ec2", note)
        resource.meta.client.meta.events.register("before-call.ec2", answer)
    worker = written["available_node_types"]["gpu"]["node_config"]
    provider.create_node({**worker, "SubnetIds": ["subnet-0"]}, {"ray-node-type": "worker"}, 1)
    provider.non_terminated_nodes({})
    provider.set_node_tags("i-0", {"ray-node-status": "up-to-date"})
    provider.terminate_nodes(["i-0"])

    rights = (INFRA / "terraform" / "iam.tf").read_text()
    assert {f"ec2:{name}" for name in asked} == set(re.findall(r'"(ec2:(?!CreateAction)\w+)"', rights))
    (name,) = re.findall(
        r'variable "name" \{.+?default     = "(.+?)"',
        (INFRA / "terraform" / "variables.tf").read_text(),
        flags=re.DOTALL,
    )
    (tags,) = asked["RunInstances"]["TagSpecifications"]
    assert tags["ResourceType"] == "instance" and {"Key": "ray-cluster-name", "Value": name} in tags["Tags"]
    assert asked["RunInstances"]["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{name}-ray")
    head = written["available_node_types"]["head"]["node_config"]
    assert head["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{name}-ray-head")


@contextlib.contextmanager
def listening(note: Callable[[str | None], None]) -> Iterator[str]:
    """An HTTP server that refuses all and notes the `Authorization` of each request; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            note(self.headers["Authorization"])
            self.send_error(401)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_job_is_submitted_with_the_token(tmp_path: Path) -> None:
    """README's line, run by Ray's own command: its first request bears the token."""
    (line,) = re.findall(r"^    (.*ray job submit -- atelier run digits)$", README, flags=re.MULTILINE)
    (tmp_path / "infra").mkdir()
    (tmp_path / "infra" / "ray-token").write_text("0123456789abcdef" * 4)
    seen: list[str | None] = []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with listening(seen.append) as address:
        command = line.replace("http://127.0.0.1:8265", address)
        subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert seen and seen[0] == f"Bearer {'0123456789abcdef' * 4}"
