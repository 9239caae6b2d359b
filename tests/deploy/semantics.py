"""What no schema says of Kubernetes' objects: that they fit each other, and the server that they run."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from autovoice.repository.model_config import ENSEMBLE
from autovoice.repository.reader import ModelRepository
from autovoice.server.server import KILL_SECONDS

Object = dict[str, Any]
WORKLOADS = ("Deployment", "ServingRuntime")


def faults(objects: list[Object], repository: ModelRepository, promtool: str | None = None) -> list[str]:
    """What is wrong with a set of objects.

    Args:
        objects: all that is applied together.
        repository: models that the releases hold.
        promtool: the program that checks queries; None to leave them.
    """
    found = [*_selectors(objects), *_services(objects), *_scaling(objects), *_kserve(objects)]
    for each in objects:
        if each["kind"] in WORKLOADS:
            found += [f"{_named(each)}: {fault}" for fault in _pods(each, objects, repository)]
    if promtool is not None:
        found += _queries(objects, promtool)
    return found


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def pods_of(found: Object) -> Object:
    """Pod template of a workload, as a pod."""
    if found["kind"] == "Deployment":
        return found["spec"]["template"]
    return {"metadata": {"labels": {}}, "spec": found["spec"]}


def queries(objects: list[Object]) -> Iterator[tuple[str, str]]:
    """Every query to Prometheus with the name of what asks it."""
    for each in of_kind(objects, "ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            yield _named(each), trigger["metadata"]["query"]
    for each in of_kind(objects, "AnalysisTemplate"):
        for metric in each["spec"]["metrics"]:
            yield _named(each), metric["provider"]["prometheus"]["query"]
    for each in of_kind(objects, "PrometheusRule"):
        for group in each["spec"]["groups"]:
            for rule in group["rules"]:
                yield _named(each), rule["expr"]


def _named(found: Object) -> str:
    return f"{found['kind']} {found['metadata']['name']}"


def _matches(selector: Mapping[str, str], found: Object) -> bool:
    labels = found["metadata"].get("labels", {})
    return bool(selector) and all(labels.get(name) == value for name, value in selector.items())


def _selectors(objects: list[Object]) -> Iterator[str]:
    """Selectors that select nothing here, or what another workload owns."""
    workloads = of_kind(objects, "Deployment")
    for each in objects:
        spec = each["spec"] if each["kind"] != "ConfigMap" else {}
        selector = spec.get("selector", spec.get("podSelector"))
        if selector is None:
            if each["kind"] in (
                "Service",
                "PodDisruptionBudget",
                "NetworkPolicy",
                "PodMonitor",
                "Deployment",
            ):
                yield f"{_named(each)} has no selector"
            continue
        wanted = selector if each["kind"] == "Service" else selector.get("matchLabels", {})
        selected = [other for other in workloads if _matches(wanted, pods_of(other))]
        if not selected:
            yield f"{_named(each)} selects no pods"
        if each["kind"] == "Deployment" and selected != [each]:
            yield f"{_named(each)} selects pods of {[_named(other) for other in selected if other != each]}"
        if each["kind"] in ("Service", "PodDisruptionBudget") and len(selected) > 1:
            yield f"{_named(each)} selects pods of several workloads"
        peers = [
            peer["podSelector"]["matchLabels"]
            for rule in (*spec.get("ingress", ()), *spec.get("egress", ()))
            for peer in (*rule.get("from", ()), *rule.get("to", ()))
            if "podSelector" in peer
        ]
        for peer in peers:
            if not any(_matches(peer, pods_of(other)) for other in workloads):
                yield f"{_named(each)} lets no pods through: {peer}"


def _ports(pods: Object) -> set[str]:
    return {port["name"] for each in pods["spec"]["containers"] for port in each["ports"] if "name" in port}


def _services(objects: list[Object]) -> Iterator[str]:
    """Ports that the selected pods do not have, and addresses in Envoy's files that are no service."""
    workloads = of_kind(objects, "Deployment")
    for each in of_kind(objects, "Service", "PodMonitor", "NetworkPolicy"):
        spec = each["spec"]
        if each["kind"] == "Service":
            wanted, names = spec.get("selector", {}), [port["targetPort"] for port in spec["ports"]]
        elif each["kind"] == "PodMonitor":
            wanted = spec.get("selector", {}).get("matchLabels", {})
            names = [port["port"] for port in spec["podMetricsEndpoints"]]
        else:
            wanted = spec.get("podSelector", {}).get("matchLabels", {})
            names = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
        for other in workloads:
            if _matches(wanted, pods_of(other)):
                for name in names:
                    if name not in _ports(pods_of(other)):
                        yield f"{_named(each)}: {_named(other)} has no port {name}"
    services = {
        f"{each['metadata']['name']}.{each['metadata']['namespace']}.svc.cluster.local": each
        for each in of_kind(objects, "Service")
    }
    for each in of_kind(objects, "ConfigMap"):
        text = each["data"]["clusters.yaml"]
        for host, port in re.findall(r"address: ([\w.-]+), port_value: (\d+)", text):
            ports = [port["port"] for port in services[host]["spec"]["ports"]] if host in services else []
            if int(port) not in ports:
                yield f"{_named(each)}: {host}:{port} is no service"


def _scaling(objects: list[Object]) -> Iterator[str]:
    names = {each["metadata"]["name"]: each for each in of_kind(objects, "Deployment")}
    for each in of_kind(objects, "ScaledObject"):
        target = each["spec"]["scaleTargetRef"]["name"]
        if target not in names:
            yield f"{_named(each)} scales {target}, which is no Deployment"
        elif "replicas" in names[target]["spec"]:
            yield f"{_named(each)}: {_named(names[target])} sets replicas as well"
        elif f'version="{names[target]["metadata"]["labels"]["autovoice-release"]}"' not in (
            query := each["spec"]["triggers"][0]["metadata"]["query"]
        ):
            yield f"{_named(each)} asks about another release: {query}"


def _kserve(objects: list[Object]) -> Iterator[str]:
    runtimes = {each["metadata"]["name"] for each in of_kind(objects, "ServingRuntime")}
    for each in of_kind(objects, "InferenceService"):
        canaries = each["spec"].get("canary", [])
        if sum(entry["trafficPercent"] for entry in canaries) > 100:
            yield f"{_named(each)}: canaries have more than 100 percent"
        predictors = [each["spec"]["predictor"], *(entry["predictor"] for entry in canaries)]
        names = [predictor["model"].get("name") for predictor in predictors]
        if None in names or len(set(names)) < len(names):
            yield f"{_named(each)}: models need a name each, not {names}"
        for predictor in predictors:
            if predictor["model"].get("runtime") not in runtimes:
                yield f"{_named(each)}: {predictor['model'].get('runtime')} is no ServingRuntime here"
            if predictor.get("terminationGracePeriodSeconds", 30) < _longest_drain(objects) + KILL_SECONDS:
                yield f"{_named(each)}: pods are killed before they have drained"


def _longest_drain(objects: list[Object]) -> float:
    return max(
        container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        for each in of_kind(objects, *WORKLOADS)
        for container in pods_of(each)["spec"]["containers"]
    )


def _pods(found: Object, objects: list[Object], repository: ModelRepository) -> Iterator[str]:
    """What is wrong with the pods of a workload."""
    pods = pods_of(found)["spec"]
    volumes = {each["name"]: each for each in pods.get("volumes", ())}
    mounted = set()
    if found["kind"] == "Deployment":
        security = pods.get("securityContext", {})
        if not (security.get("runAsNonRoot") and security.get("runAsUser")):
            yield "its pods may run as root"
        if pods.get("automountServiceAccountToken") is not False:
            yield "its pods can talk to Kubernetes"
    for container in (*pods.get("initContainers", ()), *pods["containers"]):
        name = container["name"]
        security = container.get("securityContext", {})
        if not security.get("readOnlyRootFilesystem"):
            yield f"{name} can write to its root file system"
        if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities") != {
            "drop": ["ALL"]
        }:
            yield f"{name} may gain privileges"
        if not container["resources"].get("limits", {}).get("memory"):
            yield f"{name} has no limit of memory"
        for mount in container.get("volumeMounts", ()):
            mounted.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"{name} mounts {mount['name']}, which is no volume"
            elif "image" in volumes[mount["name"]] and not mount.get("readOnly"):
                yield f"{name} mounts an image to write to it"
    if unused := set(volumes) - mounted:
        yield f"nothing mounts {sorted(unused)}"
    maps = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap")}
    for volume in volumes.values():
        if "configMap" in volume and volume["configMap"]["name"] not in maps:
            yield f"there is no ConfigMap {volume['configMap']['name']}"
    for container in pods["containers"]:
        yield from _server(found, container, repository)


def _server(found: Object, container: Object, repository: ModelRepository) -> Iterator[str]:
    """Probes, ports, and the time that a container has to end."""
    lifecycle = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if not lifecycle:
        yield "its pods end without waiting for requests"
    pods = pods_of(found)["spec"]
    serves = "serve" in container["args"]
    grace = pods.get("terminationGracePeriodSeconds", 30)
    if found["kind"] == "Deployment" and grace < lifecycle + (KILL_SECONDS if serves else 0):
        yield f"its pods are killed after {grace} s, before they have drained"
    ports = {port.get("name"): port["containerPort"] for port in container["ports"]}
    numbers = set(ports.values())
    ensembles = [each for each in repository.names() if repository.spec(each).kind == ENSEMBLE]
    wanted = {f"/v2/models/{name}/ready" for name in ensembles} if serves else {"/ready"}
    for kind in ("readinessProbe", "livenessProbe"):
        if kind not in container:
            yield f"it has no {kind}"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if kind not in container:
            continue
        asked = container[kind]["httpGet"]
        if asked["path"] not in wanted:
            yield f"its {kind} asks for {asked['path']}, not for an ensemble"
        if asked["port"] not in (*ports, *numbers):
            yield f"its {kind} asks a port that is not there: {asked['port']}"
        elif serves and ports.get(asked["port"], asked["port"]) != _option(container, "--http-port"):
            yield f"its {kind} asks another port than that of HTTP"
    if serves:
        folder = str(_option(container, "--repository"))
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        if folder not in (*mounts, "/mnt/models"):
            yield f"it serves {folder}, where nothing is mounted"
        for option, name in (("--http-port", "http"), ("--grpc-port", "grpc"), ("--metrics-port", "metrics")):
            if name in ports and ports[name] != _option(container, option):
                yield f"its port {name} is {ports[name]}, but {option} is {_option(container, option)}"
        if "/dev/shm" not in mounts or "/tmp" not in mounts:
            yield "the server has no place for shared memory and temporary files"


def _option(container: Object, name: str) -> int | str:
    value = container["args"][container["args"].index(name) + 1]
    return int(value) if value.isdigit() else value


def _queries(objects: list[Object], promtool: str) -> Iterator[str]:
    """Queries that Prometheus does not understand, by its own program."""
    rules = [
        {"record": f"query_{number}", "expr": query.replace("{{args.candidate}}", "2")}
        for number, (_, query) in enumerate(queries(objects))
    ]
    text = json.dumps({"groups": [{"name": "queries", "rules": rules}]})
    command = [promtool, "check", "rules", "/dev/stdin"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"promtool: {done.stdout}{done.stderr}"
    for each in of_kind(objects, "ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            if urlsplit(trigger["metadata"]["serverAddress"]).hostname is None:
                yield f"{_named(each)} has no address of Prometheus"
