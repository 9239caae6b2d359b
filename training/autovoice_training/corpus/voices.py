"""The voices of the corpus: who speaks, by which engine, from which Debian package, in which split."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

_FESTIVAL_VOICES = Path("/usr/share/festival/voices")


class MissingVoiceError(RuntimeError):
    """An engine or a voice is not installed; the message names the Debian package."""


@dataclass(frozen=True)
class Voice:
    """One voice.

    Attributes:
        name: name in the corpus.
        human: the person recorded; splits are by human.
        sex: "female", "male" or "child".
        engine: "diphone" (festival, given segments), "flite", "hts" (festival, given text) or "espeak".
        package: Debian package that holds it.
        split: "train", "valid" or "test".
        engine_name: the engine's own name of it.
        language: key into ``phones.TABLES`` for diphone voices.
        f0_hz: register the pitch targets are scaled to (diphone voices).
        labelled: whether the engine tells phone timings in the corpus phone set.
    """

    name: str
    human: str
    sex: str
    engine: str
    package: str
    split: str
    engine_name: str
    language: str = "english"
    f0_hz: float = 0.0
    labelled: bool = True

    @property
    def group_file(self) -> Path:
        """The diphone database of a festival diphone voice.

        Raises:
            MissingVoiceError: it is not installed.
        """
        found = sorted(_FESTIVAL_VOICES.glob(f"*/{self.engine_name}/group/*.group"))
        if not found:
            raise _missing(self)
        return found[0]

    def require(self) -> None:
        """Check that the engine and the voice are installed.

        Raises:
            MissingVoiceError: one is not.
        """
        program = {"diphone": "festival", "hts": "festival", "flite": "flite", "espeak": "espeak-ng"}[
            self.engine
        ]
        if shutil.which(program) is None:
            raise MissingVoiceError(f"{program} is not installed: apt-get install {program}")
        if self.engine in ("diphone", "hts") and not list(_FESTIVAL_VOICES.glob(f"*/{self.engine_name}")):
            raise _missing(self)


def _missing(voice: Voice) -> MissingVoiceError:
    return MissingVoiceError(
        f"festival voice {voice.engine_name!r} is not installed: apt-get install {voice.package} "
        "(all of them: training/voices.txt)"
    )


REFERENCE = "kal"  # the voice whose phones, durations and pitch the parallel set follows

DIPHONE_VOICES: tuple[Voice, ...] = (
    Voice("kal", "kal", "male", "diphone", "festvox-kallpc16k", "train", "kal_diphone", "english", 105),
    Voice("lp", "lp", "female", "diphone", "festvox-italp16k", "train", "lp_diphone", "italian", 200),
    Voice("pc", "pc", "male", "diphone", "festvox-itapc16k", "train", "pc_diphone", "italian", 120),
    Voice("dita", "dita", "female", "diphone", "festvox-czech-dita", "train", "czech_dita", "czech", 215),
    Voice(
        "machac", "machac", "male", "diphone", "festvox-czech-machac", "train", "czech_machac", "czech", 88
    ),
    Voice("ph", "ph", "male", "diphone", "festvox-czech-ph", "train", "czech_ph", "czech", 132),
    Voice(
        "lj", "lj", "female", "diphone", "festvox-suopuhe-lj", "train", "suo_fi_lj_diphone", "finnish", 190
    ),
    Voice("mv", "mv", "male", "diphone", "festvox-suopuhe-mv", "valid", "hy_fi_mv_diphone", "finnish", 110),
    Voice("ked", "ked", "male", "diphone", "festvox-kdlpc16k", "test", "ked_diphone", "english", 105),
    Voice("krb", "krb", "child", "diphone", "festvox-czech-krb", "test", "czech_krb", "czech", 250),
)
TEXT_VOICES: tuple[Voice, ...] = (
    Voice("slt", "slt", "female", "flite", "flite", "train", "slt"),
    Voice("awb", "awb", "male", "flite", "flite", "train", "awb"),
    Voice("slt_hts", "slt", "female", "hts", "festvox-us-slt-hts", "train", "cmu_us_slt_arctic_hts"),
    Voice("ona", "ona", "female", "hts", "festvox-ca-ona-hts", "train", "upc_ca_ona_hts", labelled=False),
    Voice("rms", "rms", "male", "flite", "flite", "test", "rms"),
)
VOICES: dict[str, Voice] = {voice.name: voice for voice in (*DIPHONE_VOICES, *TEXT_VOICES)}
EVALUATION_VOICES: tuple[str, ...] = (
    "kal",
    "slt",
    "awb",
    "lp",
    "pc",
    "dita",
    "machac",
    "ph",
    "lj",
    "mv",
    "rms",
    "ked",
    "krb",
)
DEVELOPMENT_VOICES: tuple[str, ...] = ("kal", "slt", "awb", "lp", "dita", "machac", "ph", "lj", "mv")
"""None of the test humans; the recogniser understands the first three."""
