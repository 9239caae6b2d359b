"""Envoy's files for any state and any servers, and Envoy's own opinion of them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autovoice.rollout import envoy as rendering
from autovoice.rollout.state import RolloutState, ServerEntry, Service

SERVICE = Service(1, "127.0.0.1", 8000, 8001, 8002)
PROXY = Path(__file__).resolve().parents[3] / "docs" / "proxy" / "envoy.yaml"
ports = st.integers(1024, 65535)


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[RolloutState, dict[int, ServerEntry]]:
    """A state, and servers of some of its releases and of others."""
    stable, candidate = draw(
        st.tuples(st.none() | st.integers(1, 5), st.none() | st.integers(1, 5)).filter(
            lambda pair: pair[0] is None or pair[0] != pair[1]
        )
    )
    share = 0 if candidate is None else draw(st.integers(0, 100))
    state = RolloutState(
        "releases",
        stable=stable,
        candidate=candidate,
        share=share,
        shadow=draw(st.integers(0, 100)),
        serial=draw(st.integers(0, 9)),
    )
    entries = st.builds(ServerEntry, ports, ports, ports, ports, st.booleans(), st.booleans())
    return state, draw(st.dictionaries(st.integers(1, 7), entries, max_size=4))


def routes_of(files: dict[str, Any], protocol: str) -> list[dict[str, Any]]:
    (resource,) = files[f"routes_{protocol}.json"]["resources"]
    (host,) = resource["virtual_hosts"]
    return list(host["routes"])


def clusters_in(item: Any) -> set[str]:
    """Every cluster that a route leads to."""
    if isinstance(item, list):
        return set().union(*map(clusters_in, item))
    if not isinstance(item, dict):
        return set()
    own = {item["cluster"]} if isinstance(item.get("cluster"), str) else set()
    weighted = item.get("weighted_clusters", {}).get("clusters", [])
    return own.union({cluster["name"] for cluster in weighted}, *map(clusters_in, item.values()))


def asks_for(route: dict[str, Any], release: str) -> bool:
    """Whether a route takes a request whose header names a release."""
    headers = route["match"].get("headers", [])
    return all(
        header.get("present_match") or header["string_match"]["exact"] == release for header in headers
    )


@given(rollouts())
def test_every_request_has_one_place_to_go(rollout: tuple[RolloutState, dict[int, ServerEntry]]) -> None:
    state, servers = rollout
    files = rendering.render(state, servers, SERVICE)
    assert json.loads(json.dumps(files)) == files
    assert files == rendering.render(state, dict(reversed(servers.items())), SERVICE)
    known = {cluster["name"] for cluster in files["clusters.json"]["resources"]}
    for protocol in ("http", "grpc"):
        routes = routes_of(files, protocol)
        assert clusters_in(routes) <= known
        paths = {json.dumps({k: v for k, v in route["match"].items() if k != "headers"}) for route in routes}
        for path in paths:
            (kind,) = json.loads(path)
            those = [route for route in routes if route["match"].get(kind) == json.loads(path)[kind]]
            for number in range(1, 9):  # the first route that takes the request is the one that counts
                first = next(route for route in those if asks_for(route, str(number)))
                entry = servers.get(number)
                if entry is not None and entry.ready:
                    assert first["route"]["cluster"] == f"release_{number}_{protocol}"
                    (header,) = first["response_headers_to_add"]
                    assert header["header"] == {"key": "autovoice-release", "value": str(number)}
                else:
                    assert first["direct_response"]["status"] == (410 if protocol == "http" else 503)
            others = next(route for route in those if not route["match"].get("headers"))
            if "direct_response" in others:
                assert others["direct_response"]["status"] == 503
                assert state.stable not in servers or not state.wanted
                continue
            shares = {
                cluster["name"]: cluster["weight"]
                for cluster in others["route"]["weighted_clusters"]["clusters"]
            }
            assert sum(shares.values()) == 100
            candidate = servers.get(state.candidate or 0)
            wanted = state.share if candidate is not None and candidate.ready else 0
            assert shares.get(f"release_{state.candidate}_{protocol}", 0) == wanted
            for cluster in others["route"]["weighted_clusters"]["clusters"]:
                number = cluster["name"].split("_")[1]
                assert cluster["response_headers_to_add"][0]["header"]["value"] == number
            mirrors = others["route"].get("request_mirror_policies", [])
            is_stream = "ModelStreamInfer" in str(json.loads(path).get("path"))
            has_copy = state.shadow and not wanted and not state.share and candidate and candidate.ready
            assert bool(mirrors) == bool(has_copy and not is_stream)


@given(rollouts())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_envoy_takes_the_files(
    envoy: Path, tmp_path: Path, rollout: tuple[RolloutState, dict[int, ServerEntry]]
) -> None:
    """It validates what stands in its first file alone: clusters and routes are put there."""
    files = rendering.render(*rollout, SERVICE)
    first = files["bootstrap.json"]
    del first["dynamic_resources"]
    static = first["static_resources"]
    static["clusters"] += [
        {key: value for key, value in cluster.items() if key != "@type"}
        for cluster in files["clusters.json"]["resources"]
    ]
    for listener in static["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        if manager.pop("rds", None):
            (routes,) = files[f"routes_{listener['name']}.json"]["resources"]
            del routes["@type"]
            manager["route_config"] = routes
    config = tmp_path / "all.json"
    config.write_text(json.dumps(first))
    command = [str(envoy), "--mode", "validate", "-c", str(config), "-l", "error"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_admin_is_a_socket_of_this_user_alone() -> None:
    first = rendering.render(RolloutState("releases"), {}, Service(1, "0.0.0.0", 1, 2, 3))["bootstrap.json"]
    assert first["admin"]["address"]["pipe"]["mode"] == 0o600
    for listener in first["static_resources"]["listeners"]:
        address = listener["address"]["socket_address"]["address"]
        assert address == ("127.0.0.1" if listener["name"] == "statistics" else "0.0.0.0")


def test_proxy_of_the_documentation_has_the_same_guard() -> None:
    (listener,) = yaml.safe_load(PROXY.read_text())["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    lua = manager["http_filters"][0]["typed_config"]["default_source_code"]["inline_string"]
    assert lua == rendering.guard()
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert route["match"]["safe_regex"]["regex"] == rendering.HTTP_PATHS
    assert manager["normalize_path"]
    assert listener["per_connection_buffer_limit_bytes"] == rendering.LARGEST_REQUEST


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("/v2", True),
        ("/v2/health/live", True),
        ("/v2/models/a/infer", True),
        ("/v2/models/a-b_c/versions/3/infer", True),
        ("/v2/models/a/versions/3", True),
        ("/v2/models/stats", True),
        ("/v2/repository/index", False),
        ("/v2/models/a/generate", False),
        ("/v2/models/a/versions/x/infer", False),
        ("/v2/systemsharedmemory/status", False),
        ("/metrics", False),
        ("/v2/", False),
    ],
)
def test_paths(path: str, passes: bool) -> None:
    assert bool(re.fullmatch(rendering.HTTP_PATHS, path)) == passes
