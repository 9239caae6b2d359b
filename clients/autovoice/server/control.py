"""HTTP calls to a server on this machine: is it ready, what has it loaded, and load a model again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import urllib3

from autovoice.errors import UnavailableError

_READY_SECONDS = 2.0
_CONFIG_SECONDS = 10.0
LOAD_SECONDS = 120.0


def is_ready(url: str, models: Iterable[str]) -> bool:
    """Whether the server at `url` answers and each of `models` is available.

    The models are asked one by one: the server as a whole calls itself not ready while it loads any model,
    and for ever after one failed to load, whatever it goes on serving.
    """
    try:
        return _is_ok(f"{url}/v2/health/live") and all(_is_ok(f"{url}/v2/models/{m}/ready") for m in models)
    except urllib3.exceptions.HTTPError:
        return False


def loaded_models(url: str, headers: Mapping[str, str]) -> list[str]:
    """Names of the models that the server has loaded, sorted.

    The statistics list them. Triton's index of the repository would also read the folder, and fail over a
    link to nowhere.

    Args:
        url: of the server.
        headers: that statistics ask for.

    Raises:
        UnavailableError: the server refused or did not answer.
    """
    try:
        answer = _request("GET", f"{url}/v2/models/stats", _READY_SECONDS, headers=headers)
    except urllib3.exceptions.HTTPError as error:
        raise UnavailableError(f"the server at {url} did not answer ({error}); see its log") from error
    _check(answer)
    return sorted({model["name"] for model in json.loads(answer.data)["model_stats"]})


def reload_model(url: str, model: str, headers: Mapping[str, str]) -> None:
    """Load a model anew though its files are unchanged.

    Args:
        url: of the server.
        model: its name.
        headers: that model control asks for.

    Raises:
        UnavailableError: the server refused or did not answer.
    """
    # Triton does not load a model whose files are unchanged, unless it is given a config to use.
    load_model(url, model, headers, config=json.dumps(model_config(url, model)))


def model_config(url: str, model: str) -> dict[str, Any]:
    """The config that a model was loaded with.

    Args:
        url: of the server.
        model: its name.

    Raises:
        UnavailableError: the server refused or did not answer.
    """
    try:
        answer = _request("GET", f"{url}/v2/models/{model}/config", _CONFIG_SECONDS)
    except urllib3.exceptions.HTTPError as error:
        raise UnavailableError(f"the server at {url} did not answer ({error}); see its log") from error
    _check(answer)
    config: dict[str, Any] = json.loads(answer.data)
    return config


def load_model(url: str, model: str, headers: Mapping[str, str], *, config: str | None = None) -> None:
    """Load a model; what it answered with before goes on until the new one is ready.

    Args:
        url: of the server.
        model: its name.
        headers: that model control asks for.
        config: JSON to load it with; None for the file's.

    Raises:
        UnavailableError: the server refused or did not answer.
    """
    _control(url, f"{model}/load", headers, {} if config is None else {"config": config})


def unload_model(url: str, model: str, headers: Mapping[str, str]) -> None:
    """Unload a model when the requests that it has are done.

    Args:
        url: of the server.
        model: its name.
        headers: that model control asks for.

    Raises:
        UnavailableError: the server refused or did not answer.
    """
    _control(url, f"{model}/unload", headers, {})


def _control(url: str, call: str, headers: Mapping[str, str], parameters: Mapping[str, str]) -> None:
    body = json.dumps({"parameters": dict(parameters)}).encode()
    try:
        answer = _request(
            "POST", f"{url}/v2/repository/models/{call}", LOAD_SECONDS, headers=headers, body=body
        )
    except urllib3.exceptions.HTTPError as error:
        raise UnavailableError(f"the server at {url} did not answer ({error}); see its log") from error
    _check(answer)


def _is_ok(url: str) -> bool:
    return _request("GET", url, _READY_SECONDS).status == 200


def _check(answer: urllib3.BaseHTTPResponse) -> None:
    if answer.status != 200:
        reason = answer.data.decode(errors="replace")
        raise UnavailableError(f"the server answered {answer.status} ({reason}); see its log")


def _request(
    method: str,
    url: str,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> urllib3.BaseHTTPResponse:
    """One call, past any proxy of the environment, on a connection that is closed after it.

    A server that is told to stop waits for HTTP connections that stay open.
    """
    with urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=seconds)) as pool:
        return pool.request(method, url, headers=headers, body=body)
