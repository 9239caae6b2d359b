"""What has to be measured in a process of its own: `python fresh_process.py cold|memory ...`.

Prints one JSON object when the conversion is done. Imports no more than a user's program would, because
start-up and memory are what is measured.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402


def cold(repository: str, source: str, embedding: str) -> dict[str, float]:
    """Seconds from the interpreter's start to the end of each step of a first conversion."""
    from autovoice import PipelineConfig, VoiceConversionPipeline, load_embedding, read_audio

    imported = time.perf_counter()
    audio, rate = read_audio(source)
    pipeline = VoiceConversionPipeline(PipelineConfig(repository=repository, device="cpu"))
    opened = time.perf_counter()
    pipeline.convert(audio, load_embedding(embedding), source_sample_rate=rate)
    return {
        "import": imported - STARTED,
        "open": opened - imported,
        "load_and_convert": time.perf_counter() - opened,
    }


def memory(repository: str, source: str, embedding: str) -> dict[str, float]:
    """Peak memory in bytes before and after converting a file on one thread, and the RTF."""
    from autovoice import PipelineConfig, VoiceConversionPipeline, load_embedding

    config = PipelineConfig(repository=repository, device="cpu", threads=1)
    with VoiceConversionPipeline(config) as pipeline:
        before = peak_memory()
        output = Path(source).with_suffix(".out.wav")
        result = pipeline.convert_file(source, output, load_embedding(embedding))
        output.unlink()
    return {"before": before, "peak": peak_memory(), "rtf": result.profile.rtf}


def peak_memory() -> int:
    """The most memory this process has held, in bytes; psutil tells that on Windows alone."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        import resource

        # Kilobytes, but bytes on macOS. On Linux it may be the parent's, from before exec: hence VmHWM.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    print(json.dumps({"cold": cold, "memory": memory}[sys.argv[1]](*sys.argv[2:])), flush=True)
