"""`autovoice info`: what is installed and what would run, or what a server holds and where its time goes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autovoice.cli.console import describe_gpu, make_table, print_table
from autovoice.cli.options import (
    ApiKeyFileOption,
    JsonOption,
    RepositoryOption,
    ServerOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    pipeline_config,
    require_one_place,
)
from autovoice.cli.voices import print_voices

if TYPE_CHECKING:
    from autovoice.engines.triton.engine import TritonEngine
    from autovoice.engines.triton.wire import ModelStatistics
    from autovoice.repository.reader import ModelRepository

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tritonclient", "av", "soundfile", "soxr")
_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


def info(
    check: Annotated[
        bool, typer.Option("--check", help="Load every model and check it against its configuration.")
    ] = False,
    ready: Annotated[
        bool, typer.Option("--ready", help="With --server: only check that it is ready (exit code 0 or 1).")
    ] = False,
    as_json: JsonOption = False,
    repository: RepositoryOption = None,
    server: ServerOption = None,
    api_key_file: ApiKeyFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
) -> int:
    """Show the model repository, engines, versions and devices, or what a server does and how fast."""
    from autovoice.engines.local import check_repository
    from autovoice.engines.opening import connect
    from autovoice.errors import ConfigurationError
    from autovoice.repository.reader import ModelRepository

    require_one_place(repository, server)
    if check and server is not None:
        raise ConfigurationError("--check is for a repository, and --server for a server; give one of them")
    if ready and server is None:
        raise ConfigurationError("--ready is for a server; give --server too, or leave it out")
    config = pipeline_config(
        repository=repository,
        server=server,
        api_key_file=api_key_file,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    if server is not None:
        engine = connect(config)
        try:
            engine.check_ready()
            if not ready:
                _show_server(engine, as_json=as_json)
        finally:
            engine.close()
        return 0
    models = ModelRepository(config.repository_path())
    if check:
        check_repository(models)
    facts = _facts(models, checked=check)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print_facts(facts)
    return 0


def _facts(repository: ModelRepository, *, checked: bool) -> dict[str, Any]:
    import platform

    from autovoice import __version__
    from autovoice.config import BASE_VOICE, usable_cores
    from autovoice.engines.gpus import gpu_uses
    from autovoice.engines.onnx_session import available_devices
    from autovoice.voices.catalogue import voices_of

    models = []
    for name in repository.names():
        spec = repository.spec(name)
        file = spec.model_file
        folder = Path(repository.path) / name / str(spec.version)
        models.append(
            {
                "name": name,
                "kind": spec.kind,
                "version": spec.version,
                "bytes": file.stat().st_size if file else None,
                "shared_with": file.resolve().parents[1].name if file and file.is_symlink() else None,
                "inputs": {tensor.name: list(tensor.dims) for tensor in spec.inputs},
                "outputs": {tensor.name: list(tensor.dims) for tensor in spec.outputs},
                "tensorrt_plans": sorted(plan.name for plan in folder.glob("*.plan")),
            }
        )
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "autovoice": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "devices": available_devices(),
        "gpus": [asdict(gpu) for gpu in gpu_uses()],
        "versions": {name: version for name, version in versions.items() if version},
        "repository": str(Path(repository.path).resolve()),
        "checked": checked,
        "voices": [voice.to_dict() for voice in voices_of(repository)],
        "voice": dict(repository.spec(BASE_VOICE).parameters) if BASE_VOICE in repository.names() else {},
        "models": models,
    }


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print_facts(facts: dict[str, Any]) -> None:
    from rich.filesize import decimal

    from autovoice import VoiceInfo
    from autovoice.results import GpuUse

    cores = f"{facts['cores']} core{'s' * (facts['cores'] != 1)}"
    checked = ", all models loaded and checked" if facts["checked"] else ""
    summary = make_table("", "")
    summary.show_header = False
    summary.columns[0].style = "dim"
    for label, value in (
        ("autovoice", f"{facts['autovoice']} on Python {facts['python']}"),
        ("devices", f"{', '.join(facts['devices'])} ({cores})"),
        *(("", describe_gpu(GpuUse(**gpu))) for gpu in facts["gpus"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ("base voice", ", ".join(f"{name} {value}" for name, value in sorted(facts["voice"].items()))),
        ("repository", facts["repository"] + checked),
    ):
        if value:
            summary.add_row(label, value)
    print_table(summary)
    print()
    print_voices(VoiceInfo(**voice) for voice in facts["voices"])
    print()
    table = make_table("model", "engine", "size", "inputs -> outputs", right=("size",))
    for model in facts["models"]:
        engine = " ".join([model["kind"], *model["tensorrt_plans"]])
        size = decimal(model["bytes"]) if model["bytes"] is not None else ""
        if model["shared_with"]:
            size = "shared"
        tensors = " -> ".join(", ".join(model[side]) for side in ("inputs", "outputs"))
        table.add_row(model["name"], engine, size, tensors)
    print_table(table)


def _show_server(engine: TritonEngine, *, as_json: bool) -> None:
    """Print version, models and, for every model, how its requests spent their time since it was loaded."""
    name, version = engine.server_version()
    models = [_model_facts(statistics) for statistics in engine.statistics()]
    if as_json:
        print(json.dumps({"server": name, "version": version, "models": models}, indent=2))
        return
    print(f"{engine.device}: {name} {version}, ready\n")
    numbers = ("requests", "failed", "batch", "total ms", "queue", "input", "infer", "output")
    table = make_table("model", *numbers, right=numbers)
    for model in models:
        table.add_row(
            model["name"],
            str(model["requests"]),
            str(model["failures"]),
            f"{model['batch']:.1f}" if model["batch"] else "",
            *(f"{model[f'{part}_ms']:.2f}" for part in ("total", *_STAGES)),
        )
    print_table(table)


def _model_facts(model: ModelStatistics) -> dict[str, Any]:
    """Counts and mean milliseconds per request of one model."""
    return {
        "name": model.name,
        "version": str(model.version),
        "requests": model.durations["success"].count,
        "failures": model.durations["fail"].count,
        # How many requests ran together on average; 0 for ensembles, which execute nothing themselves.
        "batch": model.inferences / model.executions if model.executions else 0.0,
        "total_ms": model.durations["success"].mean_ms,
        **{f"{stage}_ms": model.durations[stage].mean_ms for stage in _STAGES},
    }
