"""The manifests: by Kubernetes' schemas, KubeRay's fields (kuberay.py), Ray's own autoscaler, and by each other."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.infra import kuberay
from tests.infra.test_compose import AIRFLOW
from tests.infra.test_images import IMAGES
from tests.infra.tools import INFRA, ROOT

FOLDER = INFRA / "kubernetes"
README = (INFRA / "README.md").read_text()
KUBERNETES = "1.34"
VALUES = "airflow-values.yaml"  # of a chart, no manifest


def manifests() -> dict[str, dict[str, Any]]:
    """Every manifest by file and name."""
    found = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        if file.name != VALUES:
            for each in yaml.safe_load_all(file.read_text()):
                name = each["metadata"].get("name") or each["metadata"]["generateName"]
                found[f"{file.name}:{each['kind']}/{name}"] = each
    return found


ALL = manifests()
PLAIN = {name: each for name, each in ALL.items() if each["apiVersion"] != "ray.io/v1"}
RAY = {name: each for name, each in ALL.items() if each["apiVersion"] == "ray.io/v1"}


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The spec of the cluster that a RayCluster or a RayJob describes."""
    spec: dict[str, Any] = manifest["spec"]
    return spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of Ray, by where it is."""
    for name, manifest in RAY.items():
        spec = cluster_of(manifest)
        yield f"{name}:head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name}:{group['groupName']}", group["template"]


PODS = dict(pods())
each_pod = pytest.mark.parametrize("where", PODS)


def check(manifest: dict[str, Any]) -> None:
    """By the schema of its kind; an unknown field is refused."""
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", PLAIN)
def test_a_manifest_fits_kubernetes(name: str) -> None:
    check(PLAIN[name])


@pytest.mark.parametrize("name", RAY)
def test_a_resource_of_ray_has_kuberays_fields(name: str) -> None:
    jsonschema.validate(RAY[name], kuberay.SCHEMAS[RAY[name]["kind"]])


@each_pod
def test_a_pod_fits_kubernetes(where: str) -> None:
    check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": PODS[where]})


def test_a_misspelt_field_is_refused_everywhere() -> None:
    """The three checks above can fail."""
    budget = copy.deepcopy(PLAIN["access.yaml:PodDisruptionBudget/ray-head"])
    budget["spec"]["minAvailabel"] = budget["spec"].pop("minAvailable")
    with pytest.raises(kubernetes_validate.ValidationError):
        check(budget)
    cluster = copy.deepcopy(RAY["raycluster.yaml:RayCluster/atelier"])
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster, kuberay.SCHEMAS["RayCluster"])
    pod = copy.deepcopy(PODS["rayjob.yaml:RayJob/digits-:head"])
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod})


def test_rays_autoscaler_reads_the_groups_as_meant() -> None:
    """The code that Ray's autoscaler runs on a RayCluster; it checks what it makes by Ray's own schema."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    made = _derive_autoscaling_config_from_ray_cr(RAY["raycluster.yaml:RayCluster/atelier"])
    groups = made["available_node_types"]
    assert set(groups) == {"headgroup", "cpu", "gpu"}
    assert groups["headgroup"]["resources"]["CPU"] == 0
    assert (groups["gpu"]["resources"]["GPU"], groups["gpu"]["resources"]["CPU"]) == (8, 88)
    assert (groups["gpu"]["min_workers"], groups["gpu"]["max_workers"]) == (0, 8)
    assert made["max_workers"] == 16 + 8
    assert made["idle_timeout_minutes"] == 5


@pytest.mark.parametrize("name", RAY)
def test_the_version_of_ray_is_the_one_that_is_pinned(name: str) -> None:
    assert f"ray=={cluster_of(RAY[name])['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


@each_pod
def test_a_pod_passes_the_restricted_standard(where: str) -> None:
    """Kubernetes' pod security standard `restricted`, which the namespace enforces."""
    spec = PODS[where]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not any("hostPath" in volume for volume in spec["volumes"])
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@each_pod
def test_a_pod_runs_our_images_with_bounded_memory(where: str) -> None:
    (container,) = PODS[where]["spec"]["containers"]
    assert container["image"].partition(":")[0].removeprefix("atelier-") in IMAGES
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert (gpus is not None) == ("ray-gpu" in container["image"])


@each_pod
def test_a_worker_has_time_to_commit_its_step(where: str) -> None:
    from trainers.launch import GRACE_SECONDS

    if not where.endswith(":head"):
        assert PODS[where]["spec"]["terminationGracePeriodSeconds"] > GRACE_SECONDS + 10


@each_pod
def test_a_worker_tells_ray_before_it_goes(where: str) -> None:
    if where.endswith(":head"):
        return
    [container] = PODS[where]["spec"]["containers"]
    script, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    copied = script.removeprefix("/opt/atelier/")
    assert f"COPY {copied} {copied}\n" in (INFRA / "Dockerfile").read_text() and (ROOT / copied).stat().st_mode & 0o111
    assert int(seconds) < PODS[where]["spec"]["terminationGracePeriodSeconds"]


@each_pod
def test_accounts_config_maps_and_secrets_of_a_pod_exist(where: str) -> None:
    accounts = {each["metadata"]["name"] for each in PLAIN.values() if each["kind"] == "ServiceAccount"}
    maps = {each["metadata"]["name"] for each in PLAIN.values() if each["kind"] == "ConfigMap"}
    spec = PODS[where]["spec"]
    assert spec["serviceAccountName"] in accounts
    sources = spec["containers"][0]["envFrom"]
    assert {source["configMapRef"]["name"] for source in sources if "configMapRef" in source} <= maps
    readme = (INFRA / "README.md").read_text()
    for volume in spec["volumes"]:
        if secret := volume.get("secret"):
            assert f"create secret generic {secret['secretName']} " in readme


def test_only_the_autoscalers_head_has_a_token_for_kubernetes() -> None:
    accounts = {each["metadata"]["name"]: each for each in PLAIN.values() if each["kind"] == "ServiceAccount"}
    with_token = {name for name, each in accounts.items() if each.get("automountServiceAccountToken") is not False}
    assert with_token == {"atelier-ray-head"}
    users = {where for where, pod in PODS.items() if pod["spec"]["serviceAccountName"] in with_token}
    assert users == {"raycluster.yaml:RayCluster/atelier:head"}
    assert not {each["kind"] for each in ALL.values()} & {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


def test_the_budget_and_the_policies_select_what_kuberay_labels() -> None:
    """KubeRay labels its pods ray.io/cluster, ray.io/node-type and ray.io/is-ray-node."""
    budget = PLAIN["access.yaml:PodDisruptionBudget/ray-head"]["spec"]["selector"]["matchLabels"]
    assert budget == {
        "ray.io/node-type": "head",
        "ray.io/cluster": ALL["raycluster.yaml:RayCluster/atelier"]["metadata"]["name"],
    }
    assert PLAIN["access.yaml:NetworkPolicy/closed"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    policy = PLAIN["access.yaml:NetworkPolicy/ray"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    open_ports = [port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])]
    assert open_ports == [8265]


def test_all_is_in_the_namespace() -> None:
    for name, each in ALL.items():
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "atelier", name


def test_the_rayjob_runs_a_command_that_exists() -> None:
    from typer.testing import CliRunner

    from pipeline.cli import app

    program, verb, *words = RAY["rayjob.yaml:RayJob/digits-"]["spec"]["entrypoint"].split()
    assert program == "atelier"
    assert CliRunner().invoke(app, [verb, *words, "--help"]).exit_code == 0


def test_garbage_is_deleted_by_a_job_of_ray_where_airflow_may_not() -> None:
    """README's line: the head and the container that it names exist, and its command is one of ours."""
    from typer.testing import CliRunner

    from pipeline.cli import app

    (line,) = re.findall(r"exec (service/\S+ --container \S+ -- \\\n +ray job submit .+ -- atelier .+)$", README, re.M)
    service, _, container, *_ = line.split()
    head = ALL["raycluster.yaml:RayCluster/atelier"]
    assert service == f"service/{head['metadata']['name']}-head-svc"
    assert container in {each["name"] for each in cluster_of(head)["headGroupSpec"]["template"]["spec"]["containers"]}
    words = line.rpartition(" -- atelier ")[2].split()
    assert "--delete" in words and CliRunner().invoke(app, [*words, "--help"]).exit_code == 0


def test_the_charts_values_name_what_there_is() -> None:
    """No registry that the tests reach has Airflow's chart: its values are compared with the rest, not rendered."""
    values = yaml.safe_load((FOLDER / VALUES).read_text())
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"apache-airflow=={values['airflowVersion']}\n" in pinned
    assert values["images"]["airflow"]["repository"] == "atelier-airflow"
    readme = (INFRA / "README.md").read_text()
    wanted = {values["data"]["metadataSecretName"], *(secret["secretName"] for secret in values["secret"])}
    wanted |= {values[f"{name}SecretName"] for name in ("fernetKey", "apiSecretKey", "jwt")}
    for secret in wanted:
        assert f"create secret generic {secret} " in readme
    parts = {"apiServer", "scheduler", "triggerer", "dagProcessor"}
    assert len(parts) == len(AIRFLOW)
    for part in parts:
        assert values[part]["serviceAccount"] == {"create": False, "name": "atelier-airflow"}
    assert (
        values["securityContexts"]["pod"] == PODS["raycluster.yaml:RayCluster/atelier:head"]["spec"]["securityContext"]
    )
    container = {"name": "one", "env": values["env"], "envFrom": yaml.safe_load(values["extraEnvFrom"])}
    pod = {"containers": [{**container, "volumeMounts": values["volumeMounts"]}], "volumes": values["volumes"]}
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod})
