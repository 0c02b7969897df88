"""The Terraform module: its format, its validity by the AWS provider's schema, and plans of it without AWS."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.infra.tools import INFRA, output_of, terraform

MODULE = INFRA / "terraform"
KUBERNETES = INFRA / "kubernetes"
# The provider is a download of 100 MB and more: a folder of providers under /opt takes its place where there is one.
MIRRORS = sorted(Path("/opt").glob("*/registry.terraform.io/hashicorp/aws"))
QUIET = {"TF_CLI_CONFIG_FILE": "/dev/null", "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the module with its provider."""
    folder = tmp_path_factory.mktemp("terraform") / "module"
    shutil.copytree(MODULE, folder, ignore=shutil.ignore_patterns(".terraform*"))
    mirror = [f"-plugin-dir={MIRRORS[0].parents[2]}"] if MIRRORS else []
    output_of(terraform(), "init", "-backend=false", "-input=false", *mirror, cwd=folder, env=QUIET)
    return folder


def test_it_is_formatted() -> None:
    output_of(terraform(), "fmt", "-check", "-diff", "-recursive", cwd=MODULE, env=QUIET)


def test_it_is_valid(module: Path) -> None:
    assert "The configuration is valid" in output_of(terraform(), "validate", "-no-color", cwd=module, env=QUIET)


def test_an_argument_that_aws_does_not_know_is_refused(module: Path, tmp_path: Path) -> None:
    """The check above can fail."""
    wrong = tmp_path / "wrong"
    shutil.copytree(module, wrong, symlinks=True)
    text = (wrong / "bucket.tf").read_text()
    (wrong / "bucket.tf").write_text(text.replace("block_public_acls ", "block_public_acl ", 1))
    command = [terraform(), "validate", "-no-color"]
    done = subprocess.run(command, cwd=wrong, env={"HOME": str(wrong), **QUIET}, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"block_public_acl" in done.stderr


def test_its_plans_are_as_meant(module: Path) -> None:
    """tests/plan.tftest.hcl: rights, taints, the store's locks."""
    assert ", 0 failed" in output_of(terraform(), "test", "-no-color", cwd=module, env=QUIET)


def test_the_cluster_of_ray_tolerates_the_machines_taints() -> None:
    text = (MODULE / "cluster.tf").read_text()
    taints = set(re.findall(r'key    = "(.+)"', text)) | set(re.findall(r'\? \["(.+?)"\]', text))
    groups = yaml.safe_load((KUBERNETES / "raycluster.yaml").read_text())["spec"]["workerGroupSpecs"]
    (gpu,) = [group for group in groups if group["groupName"] == "gpu"]
    assert taints == {"nvidia.com/gpu", "atelier/spot"}
    assert taints <= {toleration["key"] for toleration in gpu["template"]["spec"]["tolerations"]}


def test_the_accounts_that_get_rights_exist() -> None:
    (block,) = re.findall(r"accounts = \{(.+?)\}", (MODULE / "iam.tf").read_text(), flags=re.DOTALL)
    named = set(re.findall(r"^\s+(\S+)\s+=", block, flags=re.MULTILINE))
    manifests = yaml.safe_load_all((KUBERNETES / "access.yaml").read_text())
    assert named == {each["metadata"]["name"] for each in manifests if each["kind"] == "ServiceAccount"}
