"""The Helm chart and the plain manifests: rendered, valid by schema, fitting each other and the server."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import schemas
import semantics
import yaml

from autovoice.repository.reader import ModelRepository

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ModelRepository(ROOT / "model_repository")
Object = dict[str, Any]
Place = tuple[str | int, ...]


def load_render() -> Any:
    spec = importlib.util.spec_from_file_location("render", ROOT / "deploy" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RENDER = load_render()
EXAMPLES = tuple(RENDER.EXAMPLES)


@cache
def _committed(example: str) -> tuple[Object, ...]:
    return tuple(yaml.safe_load_all((RENDER.MANIFESTS / f"{example}.yaml").read_text(encoding="utf-8")))


def manifests(example: str) -> list[Object]:
    """Objects of an example as they are committed, to be changed freely."""
    return copy.deepcopy(list(_committed(example)))


def rendered(values: Object) -> list[Object]:
    return list(yaml.safe_load_all(RENDER.render(values)))


OBJECTS = [
    pytest.param(example, number, id=f"{example}-{found['kind']}-{found['metadata']['name']}")
    for example in EXAMPLES
    for number, found in enumerate(_committed(example))
]
# Those of the example `autovoice` are in `canary` as well.
DISTINCT = [each for each in OBJECTS if each.values[0] != "autovoice"]


@pytest.fixture(scope="module")
def helm() -> Any:
    return pytest.importorskip("helm_python", reason="no Helm: pip install helm-python-sdk")


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool: apt-get install prometheus")
    return found


# What Helm makes


@pytest.mark.parametrize("example", EXAMPLES)
def test_plain_manifests_are_the_rendered_chart(helm: Any, example: str) -> None:
    text = (RENDER.MANIFESTS / f"{example}.yaml").read_text(encoding="utf-8")
    assert text.partition("\n")[2] == RENDER.render(RENDER.read_values(example)), "run deploy/render.py"


def test_helm_finds_nothing_to_say_but_that_an_icon_is_missing(helm: Any) -> None:
    for example in EXAMPLES:
        found = helm.lint(RENDER.CHART, RENDER.read_values(example), strict=True)
        assert [each["error"] for each in found["messages"]] == ["icon is recommended"], found


REFUSED: dict[str, Object] = {
    "misspelt value": {"stabel": 1},
    "misspelt value inside": {"scaling": {"enable": True}},
    "release without a model": {"releases": [{"number": 1, "replicas": 1}]},
    "two models": {"releases": [{"number": 1, "replicas": 1, "model": {"image": "a", "s3": "s3://b/1"}}]},
    "release that is no number": {"releases": [{"number": "new", "replicas": 1, "model": {"image": "a"}}]},
    "no address of S3": {"releases": [{"number": 2, "replicas": 1, "model": {"s3": "voices/2"}}]},
    "release twice": {"releases": [{"number": 1, "replicas": 1, "model": {"image": "a"}}] * 2},
    "stable release that is not there": {"stable": 3},
    "candidate that is not there": {"candidate": 2, "share": 10},
    "candidate that is stable": {"candidate": 1},
    "share for nobody": {"share": 10},
    "shadow for nobody": {"shadow": 10},
    "more than everything": {"share": 101},
    "unknown way of serving": {"serving": "knative"},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_that_make_no_sense_are_refused(helm: Any, kind: str) -> None:
    with pytest.raises(helm.HelmError):
        RENDER.render(REFUSED[kind])


# By schema


@pytest.mark.parametrize(("example", "number"), OBJECTS)
def test_schemas_take_every_object(example: str, number: int) -> None:
    assert schemas.faults(manifests(example)[number]) == []


# Below these, every name is the user's or the program's that reads it.
FREE = {
    "params",
    "labels",
    "annotations",
    "matchLabels",
    "selector",
    "data",
    "requests",
    "limits",
    "nodeSelector",
}
TRIGGER = ("triggers", 0, "metadata")


def places(value: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every field of an object and every entry of its lists whose name or type a schema knows."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, each in entries:
        here = (*path, name)
        yield here, each
        # Selectors are maps of labels in a Service, and objects of fields elsewhere.
        free = name in FREE and not (isinstance(each, dict) and "matchLabels" in each)
        if not free and here[-3:] != TRIGGER:
            yield from places(each, here)


def parent_of(found: Object, path: Place) -> Any:
    value: Any = found
    for name in path[:-1]:
        value = value[name]
    return value


@pytest.mark.parametrize(("example", "number"), DISTINCT)
def test_schemas_refuse_every_misspelt_field(example: str, number: int) -> None:
    missed = []
    for path, _ in places(manifests(example)[number]):
        broken = manifests(example)[number]
        parent = parent_of(broken, path)
        if path[:1] in (("apiVersion",), ("kind",)) or isinstance(parent, list):
            continue
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        if schemas.is_valid(broken):
            missed.append(path)
    assert missed == []


@pytest.mark.parametrize(("example", "number"), DISTINCT)
def test_schemas_refuse_every_wrong_type(example: str, number: int) -> None:
    missed = []
    for path, value in places(manifests(example)[number]):
        if path[:1] in (("apiVersion",), ("kind",)):
            continue
        broken = manifests(example)[number]
        parent_of(broken, path)[path[-1]] = "text" if isinstance(value, dict | list) else [value]
        if schemas.is_valid(broken):
            missed.append(path)
    assert missed == []


# By what they mean


@pytest.mark.parametrize("example", EXAMPLES)
def test_objects_fit_each_other_and_the_server(example: str) -> None:
    assert semantics.faults(manifests(example), REPOSITORY) == []


def test_prometheus_understands_every_query(promtool: str) -> None:
    objects = manifests("canary")
    assert len(list(semantics.queries(objects))) > 30
    assert semantics.faults(objects, REPOSITORY, promtool) == []


@pytest.mark.parametrize("name", ["guard.lua", "prometheus/rules.yml", "prometheus/prometheus.yml"])
def test_files_of_the_chart_are_those_of_the_rollout_on_one_machine(name: str) -> None:
    file = ROOT / "clients" / "autovoice" / "rollout" / name
    assert (RENDER.CHART / "files" / file.name).read_bytes() == file.read_bytes(), f"copy {file}"


def test_prometheus_gets_every_rule() -> None:
    rules = yaml.safe_load((RENDER.CHART / "files" / "rules.yml").read_text(encoding="utf-8"))
    groups = only(manifests("canary"), "PrometheusRule", "autovoice")["spec"]["groups"]
    assert [(group["name"], group["rules"]) for group in groups] == [
        (group["name"], group["rules"]) for group in rules["groups"]
    ]


def test_prometheus_relabels_as_on_one_machine() -> None:
    scraped = yaml.safe_load((RENDER.CHART / "files" / "prometheus.yml").read_text(encoding="utf-8"))
    names = {"source_labels": "sourceLabels", "target_label": "targetLabel"}
    for job, monitor in (("triton", "autovoice-servers"), ("envoy", "autovoice-proxy")):
        (wanted,) = (each for each in scraped["scrape_configs"] if each["job_name"] == job)
        (made,) = only(manifests("canary"), "PodMonitor", monitor)["spec"]["podMetricsEndpoints"]
        assert made["metricRelabelings"] == [
            {names.get(name, name): value for name, value in each.items()}
            for each in wanted["metric_relabel_configs"]
        ]
        assert made["path"] == wanted.get("metrics_path", "/metrics")
        assert made.get("params") == wanted.get("params")
        assert {"targetLabel": "job", "replacement": job} in made["relabelings"]


def analysis() -> dict[str, str]:
    """Queries of the analysis by the name of the metric."""
    template = only(manifests("canary"), "AnalysisTemplate", "autovoice-candidate")
    return {each["name"]: each["provider"]["prometheus"]["query"] for each in template["spec"]["metrics"]}


def test_analysis_asks_what_the_alerts_ask() -> None:
    rules = yaml.safe_load((RENDER.CHART / "files" / "rules.yml").read_text(encoding="utf-8"))
    alerts = {
        each["alert"]: each["expr"] for group in rules["groups"] for each in group["rules"] if "alert" in each
    }
    assert len(alerts) == len(analysis()) >= 5
    for alert, expression in alerts.items():
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", alert).lower()
        assert "".join(expression.split()) in "".join(analysis()[name].split())


def test_analysis_counts_the_faults_of_the_candidate_alone(promtool: str, tmp_path: Path) -> None:
    """By Prometheus' own runner: a server that ended, and failing requests, of release 2."""
    shutil.copy(RENDER.CHART / "files" / "rules.yml", tmp_path)
    xx = 'envoy_cluster_upstream_rq_xx{protocol="http", envoy_response_code_class="5", release="2"}'
    completed = "envoy_cluster_upstream_rq_completed"
    series = {
        'up{job="triton", release="1", role="stable"}': "1x60",
        'up{job="triton", release="2", role="candidate"}': "1x30 0x30",
        f'{completed}{{release="1"}}': "0+10x60",
        f'{completed}{{release="2"}}': "0+10x60",
        'envoy_cluster_upstream_rq_tx_reset{release="1"}': "0x60",
        'envoy_cluster_upstream_rq_tx_reset{release="2"}': "0x60",
        xx: "0+5x60",
    }
    expected = [
        (name, release, int(release == "2"))
        for name in ("release-server-ended", "release-requests-fail")
        for release in ("1", "2")
    ]
    document = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1s",
        "tests": [
            {
                "interval": "1s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": analysis()[name].replace("{{args.candidate}}", release),
                        "eval_time": "40s",
                        "exp_samples": [{"labels": "{}", "value": value}],
                    }
                    for name, release, value in expected
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(document))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def only(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def server(objects: list[Object]) -> Object:
    return only(objects, "Deployment", "autovoice-release-2")["spec"]["template"]["spec"]


def break_at(*path: str | int, to: Any, of: tuple[str, str]) -> Callable[[list[Object]], None]:
    def change(objects: list[Object]) -> None:
        parent = parent_of(only(objects, *of), path)
        if to is None:
            del parent[path[-1]]
        else:
            parent[path[-1]] = to

    return change


DEPLOYMENT = ("Deployment", "autovoice-release-2")
PROXY = ("Deployment", "autovoice-proxy")
POD = ("spec", "template", "spec")
SERVER = (*POD, "containers", 0)
SERVICE = ("Service", "autovoice-release-2")
SCALED = ("ScaledObject", "autovoice-release-2")
BROKEN: dict[str, Callable[[list[Object]], None]] = {
    "service without a selector": break_at("spec", "selector", to=None, of=SERVICE),
    "service that selects nothing": break_at("spec", "selector", to={"app": "x"}, of=SERVICE),
    "service of two releases": break_at(
        "spec", "selector", to={"app.kubernetes.io/component": "server"}, of=SERVICE
    ),
    "service to a port that is not there": break_at("spec", "ports", 0, "targetPort", to="web", of=SERVICE),
    "budget that selects nothing": break_at(
        "spec", "selector", "matchLabels", to={"app": "x"}, of=("PodDisruptionBudget", "autovoice-release-2")
    ),
    "deployment that takes the other's pods": break_at(
        "spec", "selector", "matchLabels", to={"app.kubernetes.io/component": "server"}, of=DEPLOYMENT
    ),
    "policy for nobody": break_at(
        "spec", "podSelector", "matchLabels", to={"app": "x"}, of=("NetworkPolicy", "autovoice-servers")
    ),
    "policy that keeps Envoy out": break_at(
        *("spec", "ingress", 0, "from", 0, "podSelector", "matchLabels"),
        to={"app": "x"},
        of=("NetworkPolicy", "autovoice-servers"),
    ),
    "policy for another port": break_at(
        "spec", "ingress", 0, "ports", 0, "port", to="web", of=("NetworkPolicy", "autovoice-servers")
    ),
    "probe of the server's flag": break_at(
        *SERVER, "readinessProbe", "httpGet", "path", to="/v2/health/ready", of=DEPLOYMENT
    ),
    "probe of a model that is not there": break_at(
        *SERVER, "livenessProbe", "httpGet", "path", to="/v2/models/voice/ready", of=DEPLOYMENT
    ),
    "probe of a stage": break_at(
        *SERVER, "startupProbe", "httpGet", "path", to="/v2/models/synthesizer/ready", of=DEPLOYMENT
    ),
    "probe of gRPC": break_at(*SERVER, "readinessProbe", "httpGet", "port", to="grpc", of=DEPLOYMENT),
    "no readiness": break_at(*SERVER, "readinessProbe", to=None, of=DEPLOYMENT),
    "no liveness": break_at(*SERVER, "livenessProbe", to=None, of=DEPLOYMENT),
    "no drain": break_at(*SERVER, "lifecycle", to=None, of=DEPLOYMENT),
    "grace below the drain": break_at(*POD, "terminationGracePeriodSeconds", to=60, of=DEPLOYMENT),
    "grace that is not set": break_at(*POD, "terminationGracePeriodSeconds", to=None, of=DEPLOYMENT),
    "proxy's grace below its drain": break_at(*POD, "terminationGracePeriodSeconds", to=10, of=PROXY),
    "another port than the server's": break_at(*SERVER, "ports", 0, "containerPort", to=8080, of=DEPLOYMENT),
    "root": break_at(*POD, "securityContext", "runAsNonRoot", to=None, of=DEPLOYMENT),
    "writable root": break_at(*SERVER, "securityContext", "readOnlyRootFilesystem", to=False, of=DEPLOYMENT),
    "privileges": break_at(*SERVER, "securityContext", "capabilities", to=None, of=PROXY),
    "no limit": break_at(*SERVER, "resources", "limits", to=None, of=DEPLOYMENT),
    "volume that is not there": break_at(*SERVER, "volumeMounts", 0, "name", to="models", of=DEPLOYMENT),
    "folder where nothing is": break_at(*SERVER, "volumeMounts", 0, "mountPath", to="/models", of=DEPLOYMENT),
    "no shared memory": break_at(*SERVER, "volumeMounts", 2, "mountPath", to="/shm", of=DEPLOYMENT),
    "image to write to": break_at(
        *SERVER, "volumeMounts", 0, "readOnly", to=None, of=("Deployment", "autovoice-release-1")
    ),
    "token of the cluster": break_at(*POD, "automountServiceAccountToken", to=None, of=DEPLOYMENT),
    "scaling of what is not there": break_at("spec", "scaleTargetRef", "name", to="autovoice", of=SCALED),
    "replicas of two masters": break_at("spec", "replicas", to=2, of=DEPLOYMENT),
    "scaling by another release": break_at(
        *("spec", "triggers", 0, "metadata", "query"), to='sum(x{version="1"})', of=SCALED
    ),
    "monitor of nothing": break_at(
        "spec", "selector", "matchLabels", to={"app": "x"}, of=("PodMonitor", "autovoice-servers")
    ),
    "monitor of another port": break_at(
        "spec", "podMetricsEndpoints", 0, "port", to="web", of=("PodMonitor", "autovoice-servers")
    ),
    "Envoy's configuration gone": lambda objects: objects.remove(
        only(objects, "ConfigMap", "autovoice-proxy")
    ),
    "servers without a service": lambda objects: objects.remove(only(objects, *SERVICE)),
}
KSERVE = ("InferenceService", "autovoice")
BROKEN_KSERVE: dict[str, Callable[[list[Object]], None]] = {
    "model without a name": break_at("spec", "canary", 0, "predictor", "model", "name", to=None, of=KSERVE),
    "one name for two": break_at("spec", "predictor", "model", "name", to="release-2", of=KSERVE),
    "runtime that is not there": break_at("spec", "predictor", "model", "runtime", to="triton", of=KSERVE),
    "more than everything": break_at("spec", "canary", 0, "trafficPercent", to=101, of=KSERVE),
    "grace below the drain": break_at(
        "spec", "canary", 0, "predictor", "terminationGracePeriodSeconds", to=60, of=KSERVE
    ),
    "probe of the server's flag": break_at(
        *("spec", "containers", 0, "readinessProbe", "httpGet", "path"),
        to="/v2/health/ready",
        of=("ServingRuntime", "autovoice"),
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_fit_is_found(kind: str) -> None:
    objects = manifests("canary")
    BROKEN[kind](objects)
    assert semantics.faults(objects, REPOSITORY)


@pytest.mark.parametrize("kind", BROKEN_KSERVE)
def test_what_does_not_fit_in_kserve_is_found(kind: str) -> None:
    objects = manifests("kserve")
    BROKEN_KSERVE[kind](objects)
    assert semantics.faults(objects, REPOSITORY)


@pytest.mark.parametrize("kind", ["ScaledObject", "AnalysisTemplate", "PrometheusRule"])
def test_broken_queries_are_found(promtool: str, kind: str) -> None:
    objects = manifests("canary")
    query = next(query for name, query in semantics.queries(objects) if name.startswith(kind))
    replace_text(objects, query, query + ")")
    assert any("promtool" in fault for fault in semantics.faults(objects, REPOSITORY, promtool))


def replace_text(value: Any, old: str, new: str) -> None:
    """Replace a text wherever it is a value."""
    for name, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if each == old:
            value[name] = new
        elif isinstance(each, dict | list):
            replace_text(each, old, new)


def test_programs_take_the_arguments() -> None:
    """Every option that a container passes to `autovoice` is one of that command."""
    passed: dict[str, set[str]] = {}
    for example in EXAMPLES:
        for each in semantics.of_kind(manifests(example), *semantics.WORKLOADS):
            pods = semantics.pods_of(each)["spec"]
            for container in (*pods.get("initContainers", ()), *pods["containers"]):
                if container["args"][0] == "autovoice":
                    arguments = " ".join(container["args"]).partition(" -- ")[0].split()
                    options = {each for each in arguments if each.startswith("--")}
                    passed.setdefault(container["args"][1], set()).update(options)
    assert set(passed) == {"serve", "verify"}
    for command, options in passed.items():
        shown = subprocess.run(
            [sys.executable, "-m", "autovoice", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"},
        ).stdout
        assert {option for option in options if f"{option} " not in shown} == set()
