"""KubeRay's custom resources as JSON schemas, written by hand: no registry that the tests reach has its CRDs.

Source: the operator's Go types (ray-operator/apis/ray/v1), a cluster's as they are after 1.7, so that a field may be
newer than your operator, and a job's of an earlier version. A field that they lack is refused, as the API server does.
Pod templates, most of a CRD, are checked by Kubernetes' own schema (`kubernetes-validate`).
"""

from typing import Any

STRING: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number", "minimum": 0}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
FLAG: dict[str, Any] = {"type": "boolean"}
ANY_OBJECT: dict[str, Any] = {"type": "object"}
LIST: dict[str, Any] = {"type": "array"}
WORDS: dict[str, Any] = {"type": "array", "items": STRING}
STRINGS: dict[str, Any] = {"type": "object", "additionalProperties": STRING}


def one_of(*words: str) -> dict[str, Any]:
    """A string of these."""
    return {"enum": list(words)}


def fields(required: str = "", **properties: dict[str, Any]) -> dict[str, Any]:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


MANAGER = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
AUTH_OPTIONS = fields(mode=one_of("disabled", "token"), secretName=STRING, enableK8sTokenAuth=FLAG)
AUTOSCALER_OPTIONS = fields(
    resources=ANY_OBJECT,
    image=STRING,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    securityContext=ANY_OBJECT,
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env=LIST,
    envFrom=LIST,
    volumeMounts=LIST,
    command=WORDS,
    args=WORDS,
)
HEAD_GROUP = fields(
    "template rayStartParams",
    template=ANY_OBJECT,
    headService=ANY_OBJECT,
    enableIngress=FLAG,
    ingressOptions=ANY_OBJECT,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
)
WORKER_GROUP = fields(
    "groupName minReplicas maxReplicas rayStartParams template",
    suspend=FLAG,
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    priority={"type": "integer"},
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    template=ANY_OBJECT,
    scaleStrategy=fields(workersToDelete=WORDS),
    numOfHosts=COUNT,
)
CLUSTER_SPEC = fields(
    "headGroupSpec",
    upgradeStrategy=fields(type=one_of("Recreate", "None")),
    authOptions=AUTH_OPTIONS,
    suspend=FLAG,
    managedBy=MANAGER,
    autoscalerOptions=AUTOSCALER_OPTIONS,
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=ANY_OBJECT,
    historyServerOptions=ANY_OBJECT,
    networkPolicy=ANY_OBJECT,
    tlsOptions=fields(enabled=FLAG),
    headGroupSpec=HEAD_GROUP,
    rayVersion=STRING,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
JOB_SPEC = fields(
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
    submitterPodTemplate=ANY_OBJECT,
    metadata=STRINGS,
    clusterSelector=STRINGS,
    submitterConfig=fields(backoffLimit=COUNT),
    managedBy=MANAGER,
    deletionStrategy=ANY_OBJECT,
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The schema of a custom resource of this kind."""
    return fields(
        "apiVersion kind metadata spec",
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(kind),
        metadata=ANY_OBJECT,
        spec=spec,
    )


SCHEMAS = {"RayCluster": resource("RayCluster", CLUSTER_SPEC), "RayJob": resource("RayJob", JOB_SPEC)}
