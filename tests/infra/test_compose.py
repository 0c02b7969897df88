"""compose.yaml, read by Docker Compose itself; its secrets, by those who read them; its store, started as it says."""

import json
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.infra.test_images import IMAGES, stages
from tests.infra.tools import INFRA, output_of, tool

AIRFLOW = ("airflow-api", "airflow-scheduler", "airflow-triggerer", "airflow-dag-processor")
ONCE = ("airflow-init", "store-init")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that make_secrets.py makes."""
    folder = tmp_path_factory.mktemp("infra") / "secrets"
    output_of(sys.executable, "-I", "-S", INFRA / "make_secrets.py", folder)  # as a Python without packages
    return folder


@pytest.fixture(scope="module")
def project(secrets: Path) -> dict[str, Any]:
    """The file as Docker Compose resolves it, all profiles on."""
    command = [
        tool("docker-compose"),
        "-f",
        str(INFRA / "compose.yaml"),
        "--profile",
        "gpu",
        "config",
        "--format",
        "json",
    ]
    resolved: dict[str, Any] = json.loads(output_of(*command, cwd=INFRA, env={"SECRETS": str(secrets)}))
    return resolved


def test_docker_compose_takes_it(project: dict[str, Any]) -> None:
    assert set(project["services"]) == {
        *AIRFLOW,
        *ONCE,
        "postgres",
        "store",
        "ray-head",
        "ray-worker",
        "ray-worker-gpu",
    }


def test_docker_compose_refuses_a_misspelt_key(tmp_path: Path) -> None:
    """The check above can fail."""
    text = (INFRA / "compose.yaml").read_text().replace("    healthcheck:\n", "    helthcheck:\n", 1)
    (tmp_path / "compose.yaml").write_text(text)
    command = [tool("docker-compose"), "-f", str(tmp_path / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "helthcheck" in done.stderr


def test_every_server_has_a_health_check_and_waits_for_what_it_needs(project: dict[str, Any]) -> None:
    for name, service in project["services"].items():
        assert ("healthcheck" in service) == (name not in ONCE), name
    for name in AIRFLOW:
        needs = project["services"][name]["depends_on"]
        assert {n: needs[n]["condition"] for n in ONCE} == dict.fromkeys(ONCE, "service_completed_successfully")


def test_images_are_built_from_stages_that_exist(project: dict[str, Any]) -> None:
    built = {name: service["build"]["target"] for name, service in project["services"].items() if "build" in service}
    assert set(built.values()) == set(IMAGES)
    for service in project["services"].values():
        if "build" in service:
            assert Path(service["build"]["context"], service["build"]["dockerfile"]).exists()
            for folder in service["build"].get("additional_contexts", {}).values():
                assert Path(folder).is_dir()


def test_no_secret_is_in_the_environment_or_the_command(project: dict[str, Any], secrets: Path) -> None:
    text = json.dumps(project)
    for file in secrets.iterdir():
        for word in re.findall(r"[A-Za-z0-9_=-]{16,}", file.read_text()):
            assert word not in text, file.name


def test_every_secret_is_made_and_mounted_where_it_is_read(project: dict[str, Any], secrets: Path) -> None:
    assert set(project["secrets"]) == {file.name for file in secrets.iterdir()}
    for name, service in project["services"].items():
        mounted = {secret["target"] for secret in service.get("secrets", [])}
        environment = service.get("environment", {})
        read = set(re.findall(r"/run/secrets/[\w.-]+", json.dumps([environment, service.get("command")])))
        if name == "airflow-init":  # it only migrates the database: it needs no store and signs nothing
            read = {path for path in read if "airflow" in path and "connections" not in path}
        assert read == mounted, name


def test_ports_are_open_on_loopback_only(project: dict[str, Any]) -> None:
    published = [port for service in project["services"].values() for port in service.get("ports", [])]
    assert {port["published"] for port in published} == {"8080", "8265"}
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_our_containers_have_no_rights(project: dict[str, Any]) -> None:
    for name, service in project["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert name == "postgres" or service["cap_drop"] == ["ALL"], name


def test_a_worker_that_is_stopped_has_time_to_commit_its_step(project: dict[str, Any]) -> None:
    """`ray start` takes a SIGTERM as a drain of so many seconds, if it alone gets it: `tini -g` signals the raylet."""
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

    from trainers.launch import GRACE_SECONDS

    for name in ("ray-worker", "ray-worker-gpu"):
        service = project["services"][name]
        grace = float(service["stop_grace_period"].removesuffix("s"))
        assert GRACE_SECONDS < RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S < grace - 5
        assert service["command"][:2] == ["ray", "start"] and service.get("entrypoint") is None
        base = stages()[service["build"]["target"]].split()[1]
        assert 'ENTRYPOINT ["tini", "--"]\n' in stages()[base]


def test_gpus_are_asked_for_by_the_profile_alone(project: dict[str, Any]) -> None:
    with_gpu = {n for n, s in project["services"].items() if "nvidia" in json.dumps(s.get("deploy", {}))}
    assert with_gpu == {"ray-worker-gpu"}
    assert project["services"]["ray-worker-gpu"]["profiles"] == ["gpu"]


def test_secrets_stay_as_they_are_and_are_the_owners_alone(secrets: Path) -> None:
    before = {file.name: file.read_bytes() for file in secrets.iterdir()}
    output_of(sys.executable, INFRA / "make_secrets.py", secrets)
    assert {file.name: file.read_bytes() for file in secrets.iterdir()} == before
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert len(set(before.values())) == len(before)


def test_airflow_reads_its_secrets(project: dict[str, Any], secrets: Path, tmp_path: Path) -> None:
    """Airflow's own reading of the variables that compose.yaml sets: the `_CMD` ones, and the file of connections."""
    script = """
import json
from airflow.configuration import conf, ensure_secrets_loaded
names = [("core", "fernet_key"), ("database", "sql_alchemy_conn"), ("api", "secret_key"), ("api_auth", "jwt_secret")]
connections = [backend.get_connection("ray_default") for backend in ensure_secrets_loaded()[:1]]
print(json.dumps({"values": [conf.get(*name) for name in names],
                  "ray": [[c.schema, c.host, c.port, c.password] for c in connections]}))
"""
    environment = project["services"]["airflow-scheduler"]["environment"]
    variables = {
        k: v.replace("/run/secrets", str(secrets)) for k, v in environment.items() if k.startswith("AIRFLOW__")
    }
    del variables["AIRFLOW__CORE__AUTH_MANAGER"]  # of the extra `airflow-server`, which the tests do without
    printed = output_of(sys.executable, "-c", script, cwd=tmp_path, env={"AIRFLOW_HOME": str(tmp_path), **variables})
    read = json.loads(printed.splitlines()[-1])
    files = ("airflow-fernet-key", "airflow-database", "airflow-secret-key", "airflow-jwt-secret")
    assert read["values"] == [(secrets / name).read_text() for name in files]
    assert read["ray"] == [["http", "ray-head", 8265, (secrets / "ray-token").read_text()]]


def test_the_signing_key_signs(secrets: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    written = (secrets / "signing-key.pem").read_bytes()
    key = load_pem_private_key(written, None)
    assert isinstance(key, Ed25519PrivateKey)
    assert key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) == written
    key.public_key().verify(key.sign(b"release"), b"release")


class Weed:
    """The store as compose.yaml starts it, on loopback and other ports."""

    def __init__(self, command: list[str], folder: Path, secrets: Path) -> None:
        self.ports = free_ports(8)
        names = [f"{name}{kind}" for name in ("s3", "master", "volume", "filer") for kind in ("", ".port.grpc")]
        numbers = dict(zip(names, self.ports, strict=False))
        places = {
            "-dir=/var/lib/store": f"-dir={folder}",
            "-ip=store": "-ip=127.0.0.1",
            "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1",
            "-s3.port=8333": f"-s3.port={numbers['s3']}",
        }
        words = [places.get(word, word).replace("/run/secrets", str(secrets)) for word in command]
        ports = [f"-{n if '.' in n else n + '.port'}={p}" for n, p in numbers.items() if n != "s3"]
        self.log = (folder / "log").open("w+b")
        self.process = subprocess.Popen(
            [tool("weed"), *words[1:], *ports], cwd=folder, stdout=self.log, stderr=self.log
        )
        self.endpoint = f"http://127.0.0.1:{numbers['s3']}"
        self.master, self.filer = (
            f"127.0.0.1:{numbers[name]}.{numbers[name + '.port.grpc']}" for name in ("master", "filer")
        )

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def weed(project: dict[str, Any], secrets: Path, tmp_path: Path) -> Iterator[Weed]:
    """A running store."""
    server = Weed(project["services"]["store"]["command"], tmp_path, secrets)
    yield server
    server.stop()


def test_the_store_starts_as_written_and_takes_our_user_alone(
    weed: Weed, project: dict[str, Any], secrets: Path, tmp_path: Path
) -> None:
    """Its health check passes, store-init's line makes the bucket, and Atelier writes with the credentials made."""
    probe = project["services"]["store"]["healthcheck"]["test"][-1].replace("http://127.0.0.1:8333", weed.endpoint)
    create = project["services"]["store-init"]["command"][-1]
    create = create.replace("store:9333", weed.master).replace("store:8888", weed.filer)
    for _ in range(120):
        assert weed.process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        if subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0:
            break
        time.sleep(0.5)
    else:
        pytest.fail("the health check did not pass within a minute")
    output_of("sh", "-c", create, cwd=tmp_path)
    write = "from pipeline.store import open_store; s = open_store('s3://atelier'); s.put('a', b'1'); print(s.get('a'))"
    variables = {"AWS_ENDPOINT_URL_S3": weed.endpoint, "AWS_REGION": "us-east-1"}
    ours = {"AWS_SHARED_CREDENTIALS_FILE": str(secrets / "aws-credentials"), **variables}
    assert output_of(sys.executable, "-c", write, env=ours).strip() == "b'1'"
    (tmp_path / "wrong").write_text("[default]\naws_access_key_id = A\naws_secret_access_key = b\n")
    with pytest.raises(AssertionError, match="the store does not know the access key"):
        output_of(sys.executable, "-c", write, env={**ours, "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "wrong")})
