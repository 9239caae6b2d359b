"""`autovoice info`: what is installed and what would run."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from autovoice import PipelineConfig, __version__
from autovoice.cli.voices import voice_table
from autovoice.config import BASE_VOICE, usable_cores
from autovoice.engines.local import check_repository
from autovoice.engines.onnx_session import available_devices
from autovoice.repository.reader import ModelRepository
from autovoice.voices.catalogue import VoiceInfo, voices_of

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tritonclient", "soundfile", "soxr")


def show_info(repository: Path | None, *, check: bool, as_json: bool) -> int:
    """Print repository, models, engines, versions and devices; with `check`, load every model first."""
    config = PipelineConfig(repository=repository)
    models = ModelRepository(config.repository_path())
    if check:
        check_repository(models)
    facts = _facts(models, checked=check)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 0


def _facts(repository: ModelRepository, *, checked: bool) -> dict[str, Any]:
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
        "versions": {name: version for name, version in versions.items() if version},
        "repository": str(Path(repository.path).resolve()),
        "checked": checked,
        "voices": [voice.to_dict() for voice in voices_of(repository)],
        "voice": dict(repository.spec(BASE_VOICE).parameters) if BASE_VOICE in repository.names() else {},
        "models": models,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print(facts: dict[str, Any]) -> None:
    console = Console()
    summary = Table(box=None, pad_edge=False, show_header=False)
    summary.add_column(style="dim")
    summary.add_column(overflow="fold")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    for label, value in (
        ("autovoice", f"{facts['autovoice']} on Python {facts['python']}"),
        ("devices", f"{', '.join(facts['devices'])} ({facts['cores']} core{'s' * (facts['cores'] != 1)})"),
        ("versions", versions),
        ("voice", ", ".join(f"{name} {value}" for name, value in sorted(facts["voice"].items()))),
        (
            "repository",
            facts["repository"] + (", all models loaded and checked" if facts["checked"] else ""),
        ),
    ):
        summary.add_row(label, value)
    console.print(summary)
    console.print()
    console.print(voice_table([VoiceInfo(**voice) for voice in facts["voices"]]))
    console.print()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model", no_wrap=True)
    table.add_column("engine")
    table.add_column("MB", justify="right")
    table.add_column("inputs -> outputs", overflow="fold")
    for model in facts["models"]:
        engine = " ".join([model["kind"], *model["tensorrt_plans"]])
        size = f"{model['bytes'] / 1e6:.1f}" if model["bytes"] is not None else ""
        if model["shared_with"]:
            size = "shared"
        tensors = " -> ".join(", ".join(model[side]) for side in ("inputs", "outputs"))
        table.add_row(model["name"], engine, size, tensors)
    console.print(table)
