"""`autovoice info --server`: what a Triton server holds, and where its time goes."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

from rich.console import Console
from rich.table import Table

from autovoice.address import API_KEY_HEADER
from autovoice.cli.serve import API_KEY_VARIABLE
from autovoice.errors import ConfigurationError, InferenceError

_SECONDS = 5.0
_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


class ServerUnavailableError(InferenceError):
    """The server does not answer, or refuses to."""

    transient = False


def check_ready(url: str) -> int:
    """0 when the server and all its models are ready.

    Raises:
        ServerUnavailableError: otherwise.
    """
    _get(url, "/v2/health/ready")
    return 0


def show_server(url: str, *, as_json: bool) -> int:
    """Print version, models and, for every model, how its requests spent their time since it was loaded.

    Raises:
        ConfigurationError: the URL is not that of an HTTP service.
        ServerUnavailableError: the server does not answer, or asks for a key.
    """
    metadata = json.loads(_get(url, "/v2"))
    _get(url, "/v2/health/ready")
    statistics = json.loads(_get(url, "/v2/models/stats"))["model_stats"]
    models = sorted((_model(entry) for entry in statistics), key=lambda model: str(model["name"]))
    facts = {"server": metadata["name"], "version": metadata["version"], "models": models}
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(url, facts)
    return 0


def _model(entry: dict[str, Any]) -> dict[str, Any]:
    """Counts and mean milliseconds per request of one model."""
    timings = entry["inference_stats"]
    succeeded = timings["success"]["count"]
    model: dict[str, Any] = {
        "name": entry["name"],
        "version": entry["version"],
        "requests": succeeded,
        "failures": timings["fail"]["count"],
        # How many requests ran together on average; 0 for ensembles, which execute nothing themselves.
        "batch": entry["inference_count"] / entry["execution_count"] if entry["execution_count"] else 0.0,
        "total_ms": _mean_ms(timings["success"]),
    }
    return model | {f"{stage}_ms": _mean_ms(timings[stage]) for stage in _STAGES}


def _mean_ms(timing: dict[str, int]) -> float:
    return timing["ns"] / timing["count"] / 1e6 if timing["count"] else 0.0


def _get(url: str, path: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"server is {url!r}; give the address of its HTTP service, http://host:port")
    key = os.environ.get(API_KEY_VARIABLE)
    request = urllib.request.Request(url.rstrip("/") + path, headers={API_KEY_HEADER: key} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        if error.code == 403:
            raise ServerUnavailableError(
                f"{url} asks for a key; set {API_KEY_VARIABLE} to the right one"
            ) from error
        raise ServerUnavailableError(
            f"{url} answers {path} with status {error.code}; it is not ready or not a Triton server"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServerUnavailableError(
            f"no server answers at {url} ({reason}); start one with `autovoice serve`"
        ) from error


def _print(url: str, facts: dict[str, Any]) -> None:
    console = Console()
    console.print(f"{url}: {facts['server']} {facts['version']}, ready", highlight=False)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model", no_wrap=True)
    for column in ("requests", "failed", "batch", "total ms", "queue", "input", "infer", "output"):
        table.add_column(column, justify="right")
    for model in facts["models"]:
        batch = f"{model['batch']:.1f}" if model["batch"] else ""
        times = [model["total_ms"], *(model[f"{stage}_ms"] for stage in _STAGES)]
        table.add_row(
            model["name"],
            str(model["requests"]),
            str(model["failures"]),
            batch,
            *(f"{time:.2f}" for time in times),
        )
    console.print(table)
