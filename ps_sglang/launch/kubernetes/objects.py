"""The objects of a cluster. Their text is the chart's, too: `chart` has holes for all values.

So nothing here looks at a value: it is put where it belongs, into a text, or into a list by `*`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

from ps_sglang.launch.kubernetes.values import (
    GATEWAY_PORT,
    KEYS,
    LOGS,
    PROBE_S,
    UNROUTE_S,
    ChartValues,
    WorkerValues,
)

Object = dict[str, Any]
_CONFIG: Final = "/etc/ps-sglang/config"
_SPEC: Final = "gateway.yaml"
_WORKER_PORT: Final = 8001
USER: Final = 1000  # launch/Containerfile


def objects(values: ChartValues) -> list[Object]:
    """All objects of a cluster."""
    checksum = sha256(values.gateway.spec.encode()).hexdigest()
    workers = (workload(values, name, values.workers[name]) for name in sorted(values.workers))
    return [*gateway(values, checksum), *(one for workload in workers for one in workload)]


def gateway(values: ChartValues, checksum: str) -> list[Object]:
    """The gateway, its specification, of that `checksum`, and its addresses.

    Workers must find it while it is not ready: it is, once they have joined.
    """
    name = f"{values.name}-gateway"
    pod = _pod(
        values,
        ["launch", "--spec", f"{_CONFIG}/{_SPEC}"],
        port=GATEWAY_PORT,
        routes=("/liveness", "/readiness"),
        start_probes=values.gateway.start_probes,
        resources=values.gateway.resources,
        stop_seconds=values.gateway.stop_seconds,
        mounts=[{"name": "config", "mountPath": _CONFIG, "readOnly": True}],
        volumes=[{"name": "config", "configMap": {"name": name}}],
        lifecycle={"preStop": {"sleep": {"seconds": UNROUTE_S}}},
    )
    annotations = {
        "checksum/spec": checksum,
        "prometheus.io/scrape": "true",
        "prometheus.io/path": "/metrics",
        "prometheus.io/port": str(GATEWAY_PORT),
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _metadata(values, name, "gateway"),
            "data": {_SPEC: values.gateway.spec},
        },
        _service(values, f"{values.name}", values.port),
        _service(values, f"{values.name}-join", GATEWAY_PORT, publishNotReadyAddresses=True),
        # There is one: two would each know a part of the workers.
        _deployment(values, "gateway", 1, {"type": "Recreate"}, pod, annotations),
    ]


def workload(values: ChartValues, name: str, worker: WorkerValues) -> list[Object]:
    """The workers of one Deployment, of which one at a time may be taken away."""
    args = [
        "worker",
        *("--gateway", f"http://{values.name}-join:{GATEWAY_PORT}"),
        *("--advertise", "$(POD_IP)"),
        *("--port", str(_WORKER_PORT)),
        *("--cluster-key-file", f"{KEYS}/cluster.key"),
        *("--log-dir", LOGS),
        *("--max-restarts", "0"),  # the kubelet restarts them
        *worker.args,
    ]
    pod = _pod(
        values,
        args,
        port=_WORKER_PORT,
        routes=("/ready", "/ready"),
        start_probes=worker.start_probes,
        resources=worker.resources,
        stop_seconds=worker.stop_seconds,
        mounts=[{"name": "shm", "mountPath": "/dev/shm"}],  # NCCL's
        volumes=[{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        env=[
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {
                "name": "PS_SGLANG_API_KEY",
                "valueFrom": {"secretKeyRef": {"name": values.secret, "key": "worker.key"}},
            },
        ],
    )
    pod |= {"nodeSelector": values.node_selector, "tolerations": values.tolerations}
    # A new pod would wait for GPUs that the old one has.
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    return [
        _deployment(values, name, worker.replicas, strategy, pod),
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": _metadata(values, f"{values.name}-{name}", name),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _labels(values, name)}},
        },
    ]


def _pod(
    values: ChartValues,
    args: list[str],
    *,
    port: int,
    routes: tuple[str, str],
    start_probes: int,
    resources: dict[str, Any],
    stop_seconds: int,
    mounts: list[Object],
    volumes: list[Object],
    **more: Any,
) -> Object:
    """A pod of one container; `routes` say that it lives, and that it is ready."""
    lives, ready = ({"httpGet": {"path": path, "port": "http"}} for path in routes)
    container = {
        "name": "ps-sglang",
        "image": values.image,
        "args": args,
        "ports": [{"name": "http", "containerPort": port}],
        "resources": resources,
        "startupProbe": lives | {"periodSeconds": PROBE_S, "failureThreshold": start_probes},
        "readinessProbe": ready | {"periodSeconds": PROBE_S, "timeoutSeconds": 5},
        # It comes after our own, which ends what has hung for a minute, and says so.
        "livenessProbe": lives
        | {"periodSeconds": PROBE_S, "timeoutSeconds": PROBE_S, "failureThreshold": 12},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "keys", "mountPath": KEYS, "readOnly": True},
            {"name": "logs", "mountPath": LOGS},
            *mounts,
            *values.mounts,
        ],
        **more,
    }
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": stop_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            # A cluster key that others may read is refused.
            {"name": "keys", "secret": {"secretName": values.secret, "defaultMode": 0o440}},
            {"name": "logs", "emptyDir": {}},
            *volumes,
            *values.volumes,
        ],
    }


def _deployment(
    values: ChartValues,
    component: str,
    replicas: int,
    strategy: Object,
    pod: Object,
    annotations: Object | None = None,
) -> Object:
    labels = _labels(values, component)
    metadata = {"labels": labels} | ({} if annotations is None else {"annotations": annotations})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(values, f"{values.name}-{component}", component),
        "spec": {
            "replicas": replicas,
            "strategy": strategy,
            "selector": {"matchLabels": labels},
            "template": {"metadata": metadata, "spec": pod},
        },
    }


def _service(values: ChartValues, name: str, port: int, **more: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(values, name, "gateway"),
        "spec": {
            "selector": _labels(values, "gateway"),
            "ports": [{"name": "http", "port": port, "targetPort": "http"}],
            **more,
        },
    }


def _metadata(values: ChartValues, name: str, component: str) -> Object:
    return {"name": name, "labels": _labels(values, component)}


def _labels(values: ChartValues, component: str) -> Object:
    return {
        "app.kubernetes.io/name": "ps-sglang",
        "app.kubernetes.io/instance": values.name,
        "app.kubernetes.io/component": component,
    }
