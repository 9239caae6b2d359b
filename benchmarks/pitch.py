"""PitchYin beside other pitch trackers, on signals of known F0: `python benchmarks/pitch.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soxr
import typer
from options import Quick, Repository, Results, Speech
from pitch_metrics import PitchErrors, compare, total
from pitch_signals import (
    NOISES,
    SAMPLE_RATE,
    UNSETTLED_S,
    KnownPitch,
    complexes,
    glides,
    resynthesised,
    telephone,
    tones,
    with_hum,
    with_noise,
)
from pitch_trackers import F0_MAX, F0_MIN, PEERS, Tracker, autovoice, make_peer
from report import DEFAULT_RESULTS, Environment, Report, Section, fail, significant, skipped
from rich.progress import track as progress
from speech import FloatArray, SpeechError, find_recordings, load, looped
from timing import cores, time_together
from world import world_missing

from autovoice import PipelineConfig, VoiceConversionError, VoiceConversionPipeline

PACKAGES = (
    "autovoice", "onnxruntime", "numpy", "scipy", "pyworld", "librosa", "swift-f0", "torchcrepe", "torch",
)  # fmt: skip
TRANSPOSITIONS = (1.0, 0.7, 1.5)
SNRS_DB = (20.0, 10.0, 0.0)
MAINS_HZ = (50.0, 60.0)
HUM_DB = (19.0, 0.0)
CLEAN = "clean"
FEW_CONDITIONS = (CLEAN, "white_10db")
SLOW_RTF = 1.0
"""A tracker slower than real time is judged under few conditions only: all would take most of an hour."""

FINE_NOTE = (
    "On speech some 15 cents are no tracker's fault: formants that move shift the period of the wave against "
    "that of the pulses. Even with a constant F0, WORLD's resynthesis measures so."
)


@dataclass(frozen=True)
class Workload:
    """How much is measured.

    Attributes:
        pitches: notes of the synthetic signals, between 60 and 1000 Hz.
        note_s: length of each.
        recordings: at most so many are rebuilt by WORLD.
        speech_s: cut to this.
        speed_s: audio of the speed table.
        repeats: runs of the speed table.
        peers: what to compare with.
    """

    pitches: int = 12
    note_s: float = 0.3
    recordings: int = 12
    speech_s: float = 5.0
    speed_s: float = 5.0
    repeats: int = 3
    peers: tuple[str, ...] = tuple(PEERS)


QUICK = Workload(5, 0.2, 1, 2.0, 3.0, 2, ("dio", "swift-f0"))


def make_signals(workload: Workload, recordings: Sequence[Path]) -> list[KnownPitch]:
    """Tones, harmonic sounds, and speech rebuilt by WORLD where that is installed."""
    pitches = np.geomspace(60.0, 1000.0, workload.pitches).tolist()
    voices = [hz for hz in pitches if hz < 500.0]
    signals = [
        tones(pitches, workload.note_s),
        complexes(pitches, workload.note_s),
        telephone(voices, workload.note_s),
        glides(80.0, 640.0, workload.note_s * workload.pitches / 2),
    ]
    if world_missing():
        return signals
    for number, file in enumerate(recordings):
        audio = load(file, SAMPLE_RATE)[: round(workload.speech_s * SAMPLE_RATE)]
        signals.append(resynthesised(file.stem, audio, TRANSPOSITIONS[number % len(TRANSPOSITIONS)]))
    return signals


def make_conditions() -> dict[str, Callable[[KnownPitch, int], FloatArray]]:
    """The signal as it is, in noise of each colour and level, and with hum; the second argument is a seed."""

    def noisy(colour: str, snr_db: float) -> Callable[[KnownPitch, int], FloatArray]:
        return lambda signal, seed: with_noise(signal, colour, snr_db, seed)

    conditions: dict[str, Callable[[KnownPitch, int], FloatArray]] = {CLEAN: lambda signal, _: signal.audio}
    for colour in NOISES:
        for snr_db in SNRS_DB:
            conditions[f"{colour}_{snr_db:g}db"] = noisy(colour, snr_db)
    for hz in MAINS_HZ:
        for below_db in HUM_DB:
            conditions[f"hum_{hz:g}hz_{below_db:g}db"] = partial(_with_hum, hz=hz, below_db=below_db)
    return conditions


def _with_hum(signal: KnownPitch, _: int, hz: float, below_db: float) -> FloatArray:
    return with_hum(signal, hz, below_db)


def judge(tracker: Tracker, signal: KnownPitch, audio: FloatArray) -> PitchErrors:
    """Errors of a tracker on one signal, at the instants of its own frames."""
    wanted = audio
    if tracker.sample_rate != SAMPLE_RATE:
        wanted = soxr.resample(audio, SAMPLE_RATE, tracker.sample_rate).astype(np.float32)
    times, f0 = tracker.track(wanted)
    truth, judged = signal.at(times)
    return compare(truth[judged], f0[judged])


def measure_speed(
    report: Report, trackers: Sequence[Tracker], audio: FloatArray, repeats: int
) -> dict[str, float]:
    """RTF of every tracker on one core, in turns, and the ratio to the first one's."""
    seconds = audio.size / SAMPLE_RATE

    def call(tracker: Tracker) -> Callable[[], object]:
        source = soxr.resample(audio, SAMPLE_RATE, tracker.sample_rate).astype(np.float32)
        return lambda: tracker.track(source)

    times = time_together({tracker.name: call(tracker) for tracker in trackers}, repeats)
    first = times[trackers[0].name].cpu_median
    rows = [
        {
            "tracker": name,
            "rtf": significant(timing.median / seconds),
            "cpu_rtf": significant(timing.cpu_median / seconds),
            f"times_{trackers[0].name}": significant(timing.cpu_median / first),
        }
        for name, timing in times.items()
    ]
    report.add(
        "speed",
        Section(
            f"speed on {seconds:g} s of speech, 1 core",
            rows,
            "RTF = time / audio time, median of the runs, resampling to a tracker's own rate left out. "
            "The ratio is one of processor times.",
        ),
    )
    return {name: timing.cpu_median / seconds for name, timing in times.items()}


def measure_accuracy(
    report: Report, trackers: Sequence[Tracker], signals: Sequence[KnownPitch], rtf: dict[str, float]
) -> None:
    """One table for each kind of error: trackers and material down, conditions across."""
    conditions = make_conditions()
    errors: dict[tuple[str, str, str], PitchErrors] = {}
    jobs = [
        (tracker, condition)
        for tracker in trackers
        for condition in conditions
        if rtf[tracker.name] <= SLOW_RTF or condition in FEW_CONDITIONS
    ]
    materials = list(dict.fromkeys(signal.material for signal in signals))
    for tracker, condition in progress(jobs, description="accuracy", console=report.console, transient=True):
        for material in materials:
            errors[material, tracker.name, condition] = total(
                judge(tracker, signal, conditions[condition](signal, seed))
                for seed, signal in enumerate(signals)
                if signal.material == material
            )
    for name, title, figure in (
        (
            "gross_errors",
            "off by more than 20 %, % of frames voiced in both",
            PitchErrors.gross_percent,
        ),
        ("voicing_errors", "wrong voicing decisions, % of all frames", PitchErrors.voicing_percent),
        ("frame_errors", "frames wrong in pitch or voicing, % of all", PitchErrors.frame_percent),
        ("fine_errors", "mean error in cents where it is not gross", PitchErrors.fine_cents),
    ):
        rows = []
        for material in materials:
            for tracker in trackers:
                row: dict[str, str | float | None] = {"material": material, "tracker": tracker.name}
                for condition in conditions:
                    found = errors.get((material, tracker.name, condition))
                    value = None if found is None else figure(found)
                    row[condition] = None if value is None else round(value, 2)
                rows.append(row)
        report.add(name, Section(title, rows, FINE_NOTE if name == "fine_errors" else ""))


def main(
    quick: Quick = False,
    repository: Repository = None,
    speech: Speech = None,
    results: Results = DEFAULT_RESULTS,
    peers: Annotated[
        str, typer.Option(help=f"Comma-separated, of {', '.join(PEERS)}; all that are installed if left out.")
    ] = "",
) -> None:
    """Measures accuracy and speed of pitch tracking beside WORLD, librosa, swift-f0 and CREPE."""
    environment = Environment.here(PACKAGES)
    workload = QUICK if quick else Workload()
    if peers:
        workload = replace(workload, peers=tuple(name.strip() for name in peers.split(",")))
    unknown = set(workload.peers) - set(PEERS)
    if unknown:
        known = ", ".join(PEERS)
        raise typer.Exit(
            fail(f"benchmark: no peer is called {', '.join(sorted(unknown))}; there are {known}")
        )
    try:
        recordings = find_recordings(speech, workload.recordings)
        models = PipelineConfig(repository=repository, device="cpu", threads=1)
        with cores(1), VoiceConversionPipeline(models) as pipeline:
            report = Report("pitch", environment, _settings(workload, speech, recordings, quick))
            run(report, workload, pipeline, recordings, results)
    except (VoiceConversionError, SpeechError) as error:
        raise typer.Exit(fail(f"benchmark: {error}")) from error


def run(
    report: Report,
    workload: Workload,
    pipeline: VoiceConversionPipeline,
    recordings: Sequence[Path],
    results: Path,
) -> None:
    """Measures and writes the report."""
    report.print_head()
    trackers = [autovoice(pipeline)]
    for name in PEERS:
        if name not in workload.peers:
            skipped(report.console, name, "not asked for")
            continue
        try:
            trackers.append(make_peer(name))
        except ImportError as error:
            skipped(report.console, name, str(error))
    if world_missing():
        skipped(report.console, "speech of known F0", world_missing())
    signals = make_signals(workload, recordings)
    spoken = looped(load(recordings[0], SAMPLE_RATE), round(workload.speed_s * SAMPLE_RATE))
    rtf = measure_speed(report, trackers, spoken, workload.repeats)
    measure_accuracy(report, trackers, signals, rtf)
    report.save(results)


def _settings(
    workload: Workload, speech: Path | None, recordings: Sequence[Path], quick: bool
) -> dict[str, Any]:
    return {
        "quick": quick,
        "f0_range_hz": (F0_MIN, F0_MAX),
        "hop_ms": 10,
        "tones": "sines, 60 to 1000 Hz, with pauses",
        "harmonics": "all harmonics; 300 to 3400 Hz only; glides from 80 to 640 Hz with vibrato",
        "speech": f"{'demo' if speech is None else speech.name}: {len(recordings)} recordings of at most "
        f"{workload.speech_s:g} s rebuilt by WORLD, F0 times {_listed(TRANSPOSITIONS)} in turns",
        "noise": f"{' and '.join(NOISES)}, {_listed(SNRS_DB)} dB below the voiced parts",
        "hum": f"a tone at {_listed(MAINS_HZ)} Hz, {_listed(HUM_DB)} dB below the whole signal",
        "not_judged": f"{1e3 * UNSETTLED_S:g} ms around changes of voicing",
        "speed_s": workload.speed_s,
        "repeats": workload.repeats,
    }


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    typer.run(main)
