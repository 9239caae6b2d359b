"""Debian's diphone and flite voices, which the evaluation hears and training does not."""

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
        name: name in the evaluation's sets.
        sex: "female", "male" or "child".
        engine: "diphone" (festival, given segments) or "flite" (given text).
        package: Debian package that holds it.
        engine_name: the engine's own name of it.
        language: key into ``diphones.TABLES`` for diphone voices.
        f0_hz: register the pitch targets are scaled to (diphone voices).
    """

    name: str
    sex: str
    engine: str
    package: str
    engine_name: str
    language: str = "english"
    f0_hz: float = 0.0

    @property
    def group_file(self) -> Path:
        """The diphone database of a festival diphone voice.

        Raises:
            MissingVoiceError: it is not installed.
        """
        found = sorted(_FESTIVAL_VOICES.glob(f"*/{self.engine_name}/group/*.group"))
        if not found:
            raise MissingVoiceError(
                f"festival voice {self.engine_name!r} is not installed: apt-get install {self.package} "
                "(all of them: make voices)"
            )
        return found[0]

    def require(self) -> None:
        """Check that the engine and the voice are installed.

        Raises:
            MissingVoiceError: one is not.
        """
        program = "festival" if self.engine == "diphone" else "flite"
        if shutil.which(program) is None:
            raise MissingVoiceError(f"{program} is not installed: apt-get install {program}")
        if self.engine == "diphone":
            _ = self.group_file


REFERENCE = "kal"  # the voice whose phones, durations and pitch the diphone voices follow

VOICES: dict[str, Voice] = {
    voice.name: voice
    for voice in (
        Voice("kal", "male", "diphone", "festvox-kallpc16k", "kal_diphone", "english", 105),
        Voice("slt", "female", "flite", "flite", "slt"),
        Voice("awb", "male", "flite", "flite", "awb"),
        Voice("lp", "female", "diphone", "festvox-italp16k", "lp_diphone", "italian", 200),
        Voice("pc", "male", "diphone", "festvox-itapc16k", "pc_diphone", "italian", 120),
        Voice("dita", "female", "diphone", "festvox-czech-dita", "czech_dita", "czech", 215),
        Voice("machac", "male", "diphone", "festvox-czech-machac", "czech_machac", "czech", 88),
        Voice("ph", "male", "diphone", "festvox-czech-ph", "czech_ph", "czech", 132),
        Voice("lj", "female", "diphone", "festvox-suopuhe-lj", "suo_fi_lj_diphone", "finnish", 190),
        Voice("mv", "male", "diphone", "festvox-suopuhe-mv", "hy_fi_mv_diphone", "finnish", 110),
        Voice("rms", "male", "flite", "flite", "rms"),
        Voice("ked", "male", "diphone", "festvox-kdlpc16k", "ked_diphone", "english", 105),
        Voice("krb", "child", "diphone", "festvox-czech-krb", "czech_krb", "czech", 250),
    )
}
DEVELOPMENT_VOICES = ("kal", "slt", "awb", "lp", "dita", "machac", "ph", "lj", "mv")
"""The recogniser understands the first three."""
