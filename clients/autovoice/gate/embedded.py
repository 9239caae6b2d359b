"""A release in the embedded runtime, in a process of its own: what crashes or hangs there harms nobody.

`python -m autovoice.gate.embedded RELEASE IN.npz OUT.npz` is that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from autovoice.errors import InferenceError, VoiceConversionError
from autovoice.gate.converter import Converter, open_converters
from autovoice.results import FloatArray

TIMEOUT_SECONDS = 300.0
EMBEDDING = "TARGET_EMBEDDING"
_REFERENCE, _RATE = "reference", "rate"


def convert_embedded(
    release: Path,
    sources: Mapping[str, FloatArray],
    converters: Mapping[str, Converter],
    reference: FloatArray,
    rate: int,
) -> dict[str, FloatArray]:
    """Convert by the embedded runtime what a server has converted.

    Args:
        release: its folder.
        sources: mono audio [T] for each voice, at its rate.
        converters: of the server, whose targets are converted to.
        reference: recording [T] that was embedded.
        rate: of it, Hz.

    Returns:
        `whole/VOICE` and `live/VOICE`, and `embedding/VOICE` of voices that take one.

    Raises:
        InferenceError: the runtime failed, crashed, or took too long.
    """
    given: dict[str, FloatArray] = {_REFERENCE: reference, _RATE: np.array(rate)}
    for name, audio in sources.items():
        given[f"audio/{name}"] = audio
        if EMBEDDING in (tensors := converters[name].target.tensors):
            given[f"embedding/{name}"] = tensors[EMBEDDING]
    with tempfile.TemporaryDirectory(prefix="autovoice-gate-") as folder:
        before, after = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(before, **given)
        command = [sys.executable, "-m", __spec__.name, str(release), str(before), str(after)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
                check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        except subprocess.TimeoutExpired:
            raise InferenceError(f"the embedded runtime did not finish in {TIMEOUT_SECONDS:g} s") from None
        if done.returncode:
            said = done.stderr.strip().splitlines()
            ending = f"ended with signal {-done.returncode}" if done.returncode < 0 else "failed"
            raise InferenceError(
                f"the embedded runtime {ending}: {said[-1] if said else 'it gave no reason'}"
            )
        with np.load(after) as made:
            return dict(made)


def _run(release: Path, given: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    from autovoice.engines.local import LocalEngine
    from autovoice.repository.reader import ModelRepository

    names = [name.partition("/")[2] for name in given if name.startswith("audio/")]
    engine = LocalEngine(ModelRepository(release))
    converters = open_converters(engine, names, given[_REFERENCE], int(given[_RATE]))
    made = {}
    for name, converter in converters.items():
        if f"embedding/{name}" in given:
            made[f"embedding/{name}"] = converter.target.tensors[EMBEDDING]
            tensors = {**converter.target.tensors, EMBEDDING: given[f"embedding/{name}"]}
            converter = replace(converter, target=replace(converter.target, tensors=tensors))
        made[f"whole/{name}"] = converter.whole(given[f"audio/{name}"])
        made[f"live/{name}"] = converter.live(given[f"audio/{name}"])
    return made


def main() -> int:
    """Entry point of the process."""
    release, before, after = map(Path, sys.argv[1:])
    try:
        with np.load(before) as given:
            made = _run(release, dict(given))
    except VoiceConversionError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    np.savez(after, **made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
