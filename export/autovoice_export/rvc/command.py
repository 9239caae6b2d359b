"""What `autovoice import rvc` does and prints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from autovoice.errors import RepositoryError
from autovoice_export.rvc.content_encoders import CONTENTVEC
from autovoice_export.rvc.importing import ImportReport, ImportRequest, import_voice


def import_rvc(**options: Any) -> int:
    """Imports a voice and prints what was made.

    Args:
        options: those of `ImportRequest`.

    Raises:
        VoiceConversionError: one line on what could not be imported; the repository is as it was.
    """
    request = ImportRequest(**options)
    start = time.perf_counter()
    console = Console(stderr=True)
    try:
        with console.status(f"reading {request.checkpoint}") as status:
            report = import_voice(request, progress=lambda model: status.update(f"exporting {model}"))
    except OSError as error:
        raise RepositoryError(f"{request.repository} could not be changed: {error}") from error
    for line in _lines(report, request.repository, time.perf_counter() - start):
        print(line)
    return 0


def _lines(report: ImportReport, repository: Path, seconds: float) -> list[str]:
    config = report.checkpoint.synthesizer.config
    facts = [
        f"RVC {report.checkpoint.version}",
        f"{config.sample_rate} Hz",
        "with pitch" if config.has_f0 else "without pitch",
        f"{config.speakers} speaker" + "s" * (config.speakers > 1),
        *(["with index"] if report.models.has_index else []),
        *([f"on {report.checkpoint.encoder}"] if report.checkpoint.encoder != CONTENTVEC else []),
        *([report.checkpoint.info] if report.checkpoint.info else []),
    ]
    worst = {line.model: line for line in report.parity}
    lines = [f"{report.models.name}, version {report.version}: {', '.join(facts)}"]
    for model in report.written:
        size = sum(file.stat().st_size for file in (repository / model).glob("*/model.onnx")) / 1e6
        agrees = f"worst {worst[model].worst:.1%} of the tolerance" if model in worst else ""
        lines.append(f"  {model:24} {size:7.1f} MB  {agrees}")
    if report.reused:
        lines.append(f"  shared with what was there: {', '.join(report.reused)}")
    lines.append(f"wrote {repository} in {seconds:.1f} s")
    return lines
