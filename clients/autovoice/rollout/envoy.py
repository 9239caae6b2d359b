"""Envoy's files: a function of what is wanted, of the servers that run, and of where to listen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from autovoice.address import RELEASE_GONE, RELEASE_HEADER
from autovoice.rollout.state import RolloutState, ServerEntry, Service

FOLDER = "envoy"
BOOTSTRAP = "bootstrap.json"
CLUSTERS = "clusters.json"
ROUTES = {"http": "routes_http.json", "grpc": "routes_grpc.json"}
ADMIN_SOCKET = "admin.sock"

HTTP_PATHS = (
    r"/v2(/(health/(live|ready)|models/stats|"
    r"models/[\w-]+(/versions/[0-9]+)?(/(ready|config|stats|infer))?))?"
)
"""What passes over HTTP; model control, shared memory and `generate` stay behind."""
_GRPC_CALLS = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "ModelInfer",
)
_GRPC_PATHS = rf"/inference\.GRPCInferenceService/({'|'.join(_GRPC_CALLS)})|/grpc\.health\.v1\.Health/Check"
_GRPC_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
LARGEST_REQUEST = 1 << 27  # bytes
LATENCIES = [round(1.4**power, 1) for power in range(1, 33)]
"""Upper bounds of the buckets of Envoy's histograms, milliseconds: each 1.4 times as much, up to 47 s."""
_UNARY_SECONDS = 600
_AT_ONCE = 1 << 16  # requests and connections to one server; its own queue holds them
_TYPE = "type.googleapis.com/envoy"
_GONE = f"{RELEASE_GONE} here any more; begin again without the header {RELEASE_HEADER}"
_NOT_READY = "no release is ready yet; try again"


def render(state: RolloutState, servers: Mapping[int, ServerEntry], service: Service) -> dict[str, Any]:
    """Envoy's files, in the order in which they are to be written.

    A request with the header `autovoice-release` goes to that release as long as its server is ready; every
    other one to the stable release or the candidate, by weights.

    Args:
        state: what is wanted.
        servers: that run, by their release.
        service: where to listen.

    Returns:
        The content of each file by its name. Paths in them begin at the rollout folder.
    """
    clusters = [
        _cluster(number, protocol, port)
        for number, entry in sorted(servers.items())
        for protocol, port in (("http", entry.http), ("grpc", entry.grpc))
    ]
    return {
        BOOTSTRAP: _bootstrap(service),
        CLUSTERS: _resources(state, clusters),
        **{name: _resources(state, [_routes(protocol, state, servers)]) for protocol, name in ROUTES.items()},
    }


def weights(state: RolloutState, servers: Mapping[int, ServerEntry]) -> dict[int, int]:
    """Percent of the requests without the header by release; empty where none can have them.

    A stable release whose server starts again keeps its share: the candidate has not earned it.
    """
    candidate = servers.get(state.candidate or 0)
    share = state.share if candidate is not None and candidate.ready else 0
    shares = {}
    if state.candidate is not None and share:
        shares[state.candidate] = share
    if state.stable in servers and share < 100:
        assert state.stable is not None
        shares[state.stable] = 100 - share
    return shares if sum(shares.values()) == 100 else {}


def shadowed(state: RolloutState, servers: Mapping[int, ServerEntry]) -> int:
    """Percent of the requests that the candidate gets a copy of.

    None while it has requests of its own: a copy that begins a sequence would begin one of its own anew.
    """
    candidate = servers.get(state.candidate or 0)
    return state.shadow if candidate is not None and candidate.ready and not state.share else 0


def cluster_name(release: int, protocol: str) -> str:
    """Name of a release's servers in Envoy and in its statistics."""
    return f"release_{release}_{protocol}"


def guard() -> str:
    """Lua that refuses the requests over HTTP which would end Triton."""
    return resources.files(__package__).joinpath("guard.lua").read_text(encoding="utf-8")


def _resources(state: RolloutState, found: list[dict[str, Any]]) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
    return {"version_info": f"{state.serial}-{digest}", "resources": found}


def _bootstrap(service: Service) -> dict[str, Any]:
    guarding = {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": f"{_TYPE}.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": guard()},
        },
    }
    statistics = {
        "name": "statistics",
        "virtual_hosts": [
            {
                "name": "statistics",
                "domains": ["*"],
                "routes": [{"match": {"path": "/stats/prometheus"}, "route": {"cluster": "admin"}}],
            }
        ],
    }
    admin = {"pipe": {"path": f"{FOLDER}/{ADMIN_SOCKET}", "mode": 0o600}}
    # Over gRPC every answer is HTTP 200: this counts the real codes, by cluster.
    counting = {
        "name": "envoy.filters.http.grpc_stats",
        "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.grpc_stats.v3.FilterConfig"},
    }
    return {
        "node": {"id": "autovoice", "cluster": "autovoice"},
        "admin": {"address": admin},
        "stats_flush_interval": "1s",  # when latencies are added to the histograms
        "stats_config": {
            "histogram_bucket_settings": [{"match": {"suffix": "_rq_time"}, "buckets": LATENCIES}]
        },
        # The paths' regular expressions are larger than what Envoy takes by default.
        "layered_runtime": {
            "layers": [
                {"name": "autovoice", "static_layer": {"re2.max_program_size.error_level": 1000}},
            ]
        },
        "dynamic_resources": {"cds_config": _watched(CLUSTERS)},
        "static_resources": {
            "listeners": [
                _listener("http", service.host, service.http, _followed("http"), [guarding]),
                _listener("grpc", service.host, service.grpc, _followed("grpc"), [counting]),
                _listener("statistics", "127.0.0.1", service.metrics, {"route_config": statistics}, []),
            ],
            "clusters": [{"name": "admin", "type": "STATIC", "load_assignment": _endpoint("admin", admin)}],
        },
    }


def _followed(protocol: str) -> dict[str, Any]:
    return {"rds": {"route_config_name": protocol, "config_source": _watched(ROUTES[protocol])}}


def _watched(name: str) -> dict[str, Any]:
    return {
        "path_config_source": {"path": f"{FOLDER}/{name}", "watched_directory": {"path": FOLDER}},
        "resource_api_version": "V3",
    }


def _listener(
    name: str, host: str, port: int, routes: Mapping[str, Any], filters: list[dict[str, Any]]
) -> dict[str, Any]:
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"},
    }
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "normalize_path": True,
        "use_remote_address": True,
        "drain_timeout": "1s",
        **routes,
        "http_filters": [*filters, router],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "name": name,
        "address": _socket(host, port),
        "per_connection_buffer_limit_bytes": LARGEST_REQUEST,
        "filter_chains": [chain],
    }


def _socket(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _endpoint(name: str, address: Mapping[str, Any]) -> dict[str, Any]:
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}


def _cluster(release: int, protocol: str, port: int) -> dict[str, Any]:
    name = cluster_name(release, protocol)
    limits = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), _AT_ONCE
    )
    cluster: dict[str, Any] = {
        "@type": f"{_TYPE}.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": _endpoint(name, _socket("127.0.0.1", port)),
    }
    if protocol == "grpc":
        options = {
            "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        extension = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        cluster["typed_extension_protocol_options"] = {extension: options}
    return cluster


def _routes(protocol: str, state: RolloutState, servers: Mapping[int, ServerEntry]) -> dict[str, Any]:
    """Routes of one protocol: by the header, then for headers of releases that are gone, then by weights."""
    if protocol == "http":
        paths: list[tuple[dict[str, Any], bool]] = [({"safe_regex": {"regex": HTTP_PATHS}}, True)]
    else:
        paths = [({"safe_regex": {"regex": _GRPC_PATHS}}, True), ({"path": _GRPC_STREAM}, False)]
    routes = []
    for path, is_unary in paths:
        for number, entry in sorted(servers.items()):
            if entry.ready:
                wanted = {"name": RELEASE_HEADER, "string_match": {"exact": str(number)}}
                routes.append(
                    {
                        "match": {**path, "headers": [wanted]},
                        "route": {"cluster": cluster_name(number, protocol), **_manner(is_unary)},
                        **_naming(state, number),
                    }
                )
        named = {"name": RELEASE_HEADER, "present_match": True}
        routes.append({"match": {**path, "headers": [named]}, **_refusal(protocol, 410, _GONE)})
        shares = weights(state, servers)
        if not shares:
            routes.append({"match": path, **_refusal(protocol, 503, _NOT_READY)})
            continue
        clusters = [
            {"name": cluster_name(number, protocol), "weight": weight, **_naming(state, number)}
            for number, weight in sorted(shares.items())
        ]
        route = {"weighted_clusters": {"clusters": clusters}, **_manner(is_unary)}
        if is_unary and (percent := shadowed(state, servers)):
            assert state.candidate is not None
            fraction = {"numerator": percent, "denominator": "HUNDRED"}
            mirror = {
                "cluster": cluster_name(state.candidate, protocol),
                "runtime_fraction": {"default_value": fraction},
            }
            route["request_mirror_policies"] = [mirror]
        routes.append({"match": path, "route": route})
    return {
        "@type": f"{_TYPE}.config.route.v3.RouteConfiguration",
        "name": protocol,
        "virtual_hosts": [{"name": protocol, "domains": ["*"], "routes": routes}],
    }


def _manner(is_unary: bool) -> dict[str, Any]:
    """How long a request may take, and when it is sent again: where the server has seen nothing of it."""
    return {
        "timeout": f"{_UNARY_SECONDS if is_unary else 0}s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": 3,
        },
    }


def _naming(state: RolloutState, release: int) -> dict[str, Any]:
    """A header that names the release; in place a route does not tell it, and `model_version` alone does."""
    if state.mode == "in-place":
        return {}
    header = {"key": RELEASE_HEADER, "value": str(release)}
    return {"response_headers_to_add": [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]}


def _refusal(protocol: str, status: int, text: str) -> dict[str, Any]:
    """An answer in the manner of Triton's errors."""
    if protocol == "grpc":  # Envoy makes UNAVAILABLE of 503
        return {"direct_response": {"status": 503, "body": {"inline_string": text}}}
    kind = {"key": "content-type", "value": "application/json"}
    return {
        "direct_response": {"status": status, "body": {"inline_string": json.dumps({"error": text})}},
        "response_headers_to_add": [{"header": kind, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
    }
