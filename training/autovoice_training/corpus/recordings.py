"""People's own recordings, from free programs for children that Debian ships: words of many languages.

Single words and short phrases, one person for each program and language, no texts. The engines' dozen humans
are too few to learn from what voices have in common; these are people in front of their own microphones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from autovoice_training.corpus import audio as levels
from autovoice_training.corpus import prosody, store
from autovoice_training.corpus.voices import MissingVoiceError, Voice

SHARE = Path("/usr/share")
UTTERANCE_SECONDS = 5.0
# Telephone recordings lack half of the band that voices are told apart by.
LEAST_RATE = 16000
# Of a training voice with this many utterances, ten are kept for each of the two sets that are judged.
KEPT, KEPT_OF = 10, 68
SETS = {"dev_recorded": "valid", "eval_recorded": "test"}
_AUDIBLE_DB = 40.0
_MARGIN_FRAMES = 8


def _voices(package: str, pattern: str, split: str, languages: dict[str, str]) -> tuple[Voice, ...]:
    program = package.split("-")[0]
    names = {language: f"{program}_{language}" for language in languages}
    return tuple(
        Voice(
            names[language],
            names[language],
            sex,
            "recording",
            package,
            split,
            pattern.format(language),
            labelled=False,
        )
        for language, sex in languages.items()
    )


_F, _M, _C = "female", "male", "child"
_TUXPAINT = ("tuxpaint-stamps-default", "tuxpaint/stamps/**/*_desc_{}.ogg")
_KTUBERLING = ("ktuberling-data", "ktuberling/sounds/{}/*.*")
_KLETTRES = ("klettres-data", "klettres/{}/*/*.ogg")

RECORDED_VOICES: tuple[Voice, ...] = (
    *_voices(*_TUXPAINT, "train", {"be": _F, "bg": _M, "ca": _M, "da": _M, "fr": _M, "ro": _F}),
    *_voices(
        *_KTUBERLING,
        "train",
        {"ca": _F, "da": _F, "de": _M, "el": _M, "en": _M, "fr": _M, "ru": _F, "uk": _F, "wa": _M},
    ),
    *_voices(
        *_KLETTRES,
        "train",
        {"cs": _F, "da": _M, "en": _M, "es": _M, "he": _M, "hu": _M, "it": _F, "lt": _M, "nl": _F}
        | {"pt_BR": _C, "ru": _F, "tn": _C, "uk": _F},
    ),
    *_voices(*_TUXPAINT, "valid", {"el": _F}),
    *_voices(*_KTUBERLING, "valid", {"sl": _M}),
    *_voices(*_KLETTRES, "valid", {"en_GB": _F, "fr": _M, "ml": _M}),
    *_voices(*_TUXPAINT, "test", {"es": _F, "ru": _M}),
    *_voices(*_KTUBERLING, "test", {"lt": _M}),
    *_voices(*_KLETTRES, "test", {"ar": _F, "nds": _M}),
)
RECORDED: dict[str, Voice] = {voice.name: voice for voice in RECORDED_VOICES}


def require(voice: Voice) -> None:
    """Checks that a voice's recordings are installed.

    Raises:
        MissingVoiceError: they are not.
    """
    if next(SHARE.glob(voice.engine_name), None) is None:
        raise MissingVoiceError(
            f"the recordings {SHARE / voice.engine_name} are not installed: apt-get install {voice.package} "
            "(all of them: training/voices.txt)"
        )


def utterances(voice: Voice, count: int, seed: int) -> tuple[list[np.ndarray], int]:
    """Joins a person's recordings, in random order, to utterances of at least five seconds.

    Args:
        voice: one of RECORDED_VOICES.
        count: utterances wanted; fewer come of a person who recorded less.
        seed: of the order.

    Returns:
        Each int16 [240 * frames] at 24 kHz, and the lowest rate in Hz that one was recorded at.
    """
    paths = sorted(SHARE.glob(voice.engine_name))
    joined: list[np.ndarray] = []
    rates: list[int] = []
    clips: list[np.ndarray] = []
    for index in prosody.generator(seed, "recordings", voice.name).permutation(len(paths)):
        if len(joined) == count:
            break
        rate = soundfile.info(paths[index]).samplerate
        if rate < LEAST_RATE:
            continue
        clip = _speech(levels.read(paths[index])[0])
        if levels.active_rms(clip) < levels.SILENT_RMS:
            continue
        rates.append(rate)
        clips.append(levels.normalise(clip, str(paths[index])))
        if sum(map(len, clips)) >= UTTERANCE_SECONDS * levels.SAMPLE_RATE:
            joined.append(np.concatenate(clips))
            clips = []
    return joined, min(rates)


def _speech(audio: np.ndarray) -> np.ndarray:
    """Whole frames from a little before the first audible one to a little after the last."""
    frames = audio[: len(audio) // levels.HOP * levels.HOP].reshape(-1, levels.HOP)
    power = np.mean(np.square(frames, dtype=np.float64), axis=1)
    audible = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-_AUDIBLE_DB / 10))
    if audible.size == 0:
        return frames[:0].ravel()
    first, last = max(0, int(audible[0]) - _MARGIN_FRAMES), int(audible[-1]) + 1 + _MARGIN_FRAMES
    return frames[first:last].ravel()


def for_training(said: list[np.ndarray]) -> list[np.ndarray]:
    """What of a training person's utterances may be trained on: all but those kept, see KEPT_OF."""
    return said[2 * KEPT :] if len(said) >= KEPT_OF else said


def write_sets(root: Path, seed: int) -> None:
    """Writes ``dev_recorded`` and ``eval_recorded``, for the evaluation to read.

    Each holds the people of its split, never heard in training, and utterances kept of those heard.
    """
    described: dict[str, dict[str, object]] = {
        name: {} for name in SETS if not (root / name / "voices.json").exists()
    }
    for voice in RECORDED_VOICES if described else ():
        said, rate = utterances(voice, KEPT_OF, seed)
        seen = voice.split == "train"
        if seen and len(said) < KEPT_OF:
            continue
        for number, (name, split) in enumerate(SETS.items()):
            if name not in described or not (seen or voice.split == split):
                continue
            folder = root / name / voice.name
            folder.mkdir(parents=True, exist_ok=True)
            first = number * KEPT if seen else 0
            for index, audio in enumerate(said[first : first + KEPT]):
                # A name of its own, since recordings of one name count as the same sentence.
                soundfile.write(folder / f"{voice.name}_{index:02d}.flac", audio, levels.SAMPLE_RATE)
            described[name][voice.name] = {
                "human": voice.human,
                "sex": voice.sex,
                "seen": seen,
                "native_rate": rate,
            }
    for name, voices in described.items():
        store.write_json(root / name / "voices.json", voices)
