"""The gate: which checks a release goes through, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autovoice.errors import InferenceError, ReleaseError, VoiceConversionError
from autovoice.gate import checks
from autovoice.gate.converter import Converter, open_converters
from autovoice.gate.judging import MARGINS, judge_checks, load_judges
from autovoice.gate.report import Check, Report, Verdict
from autovoice.gate.serving import ServedRelease
from autovoice.gate.speed import speed_checks
from autovoice.gate.suite import LONG_SECONDS, Suite, conditions, long_source
from autovoice.releases.contract import read_contract
from autovoice.releases.release import SIGNATURE_FILENAME, Release, read_release
from autovoice.releases.signing import TrustedKey, check_signature
from autovoice.repository.reader import ModelRepository
from autovoice.results import FloatArray
from autovoice.voices.catalogue import voices_of

SPEED = ("RTF, whole", "p99, whole", "RTF, live", "p99, live")
GROUPS = (
    ("signature", "files"),
    ("contract",),
    ("loads",),
    ("warm-up",),
    ("answers", "length"),
    ("level", "speech", "silence", "clipping", "pitch"),
    ("agreement",),
    ("memory",),
    SPEED,
    tuple(MARGINS),
)
"""All checks in their order. Where one is refused, those of the groups after its own are not made."""
NAMES = tuple(name for group in GROUPS for name in group)
_LAST = {group[-1] for group in GROUPS}


@dataclass(frozen=True)
class GateOptions:
    """How thoroughly a release is tried.

    Attributes:
        key: that must have signed the release; None to leave signatures alone.
        judges: whether the judges are asked.
        loads: how often the release is loaded.
        rounds: requests of each kind that are timed.
        requests: after which memory has to be flat.
        long_seconds: length of the long source.
        cache: where the server's backend directory lies; see
            `autovoice.server.installation.backend_directory`.
    """

    key: TrustedKey | None = None
    judges: bool = True
    loads: int = 20
    rounds: int = 100
    requests: int = 100
    long_seconds: float = LONG_SECONDS
    cache: Path | None = None


def run_gate(
    path: Path,
    against: ServedRelease | None,
    suite: Suite,
    options: GateOptions,
    on_check: Callable[[Check], None] = lambda check: None,
) -> Report:
    """Try a release in a server of its own.

    Args:
        path: the release's folder.
        against: the release that it is compared with, whose server is started when it is needed; None for
            none.
        suite: what is converted.
        options: how thoroughly.
        on_check: called after each check.

    Raises:
        ReleaseError: the folder holds no release that can be read; the release to compare with is damaged,
            does not load, or failed.
        ConfigurationError: there is no server, or the judges are not installed.
    """
    judges = load_judges() if options.judges and against is not None else None
    release = read_release(path)
    other = None if against is None else read_release(against.path)
    if other is not None and (differences := other.check()):
        raise ReleaseError(
            f"release {other.number}, to compare with, is damaged: {checks.listed(differences)}"
        )
    made: list[Check] = []
    with ServedRelease(path, cache=options.cache) as served:
        run = _Run(release, other, served, against, suite, options, judges)
        for check in run.checks():
            if check.verdict == "refused" and (ending := served.ending):
                check = replace(check, reason=f"{check.reason}; the server ended by itself with {ending}")
            made.append(check)
            on_check(check)
            if check.name in _LAST and any(one.verdict == "refused" for one in made):
                break
    refused = next((check.name for check in made if check.verdict == "refused"), "")
    for name in NAMES[len(made) :]:
        made.append(Check(name, "not run", reason=f"{refused} was refused"))
        on_check(made[-1])
    counts = {name: getattr(options, name) for name in ("loads", "rounds", "requests", "long_seconds")}
    return Report(release, other, made, judges is not None, suite.digests(), counts)


@dataclass
class _Run:
    """One release on its way through the gate; the fields are what `run_gate` has."""

    release: Release
    other: Release | None
    served: ServedRelease
    against: ServedRelease | None
    suite: Suite
    options: GateOptions
    judges: Any

    def checks(self) -> Iterator[Check]:
        """Every check of `NAMES`, in order, as far as the caller goes on."""
        yield self._signature()
        yield self._files()
        yield self._contract()
        yield self._loads()
        try:
            voices = self._open(self.served)
        except VoiceConversionError as error:
            yield Check("warm-up", "refused", "", "all finite", str(error))
            return
        yield checks.warm_up(voices)
        rates = {converter.voice.sample_rate for converter in voices.values()}
        given = {rate: conditions(self.suite, rate, self.options.long_seconds) for rate in rates}
        yield from checks.sound_checks(checks.ask(voices, given))

        compared = self._compared()
        speech = {
            name: long_source(self.suite, one.voice.sample_rate, self.options.long_seconds)
            for name, one in voices.items()
        }
        # The release in service follows the pitch: a stage that is wrong would agree with itself.
        served = [self.served] if self.against is None else [self.against, self.served]
        yield checks.pitch_check(voices, speech, [one.engine for one in served])
        yield checks.agreement_check(self.served, voices, speech, self.suite)
        yield checks.memory_check(self.served, voices, speech, self.options.requests)
        yield from self._speed(voices, compared, speech)
        yield from self._judges(voices, compared)

    def _signature(self) -> Check:
        key, path = self.options.key, self.release.path
        if key is None:
            return Check("signature", "left out", reason="no public key was given")
        try:
            check_signature(path, path / SIGNATURE_FILENAME, key)
        except ReleaseError as error:
            return Check("signature", "refused", "", f"by {key}", str(error))
        return Check("signature", "passed", "signed", f"by {key}")

    def _files(self) -> Check:
        try:
            differences = self.release.check()
        except ReleaseError as error:
            differences = [str(error)]
        count = len(self.release.files)
        figure = f"{len(differences)} differences in {count} files"
        verdict: Verdict = "refused" if differences else "passed"
        return Check(
            "files", verdict, figure, "none", checks.listed(differences), {"differences": len(differences)}
        )

    def _contract(self) -> Check:
        try:
            models = ModelRepository(self.release.path)
            specs = [models.spec(name) for name in models.names()]
            for spec in specs:
                if spec.steps:
                    models.steps_in_order(spec)
            mine = read_contract(models, {step.model for spec in specs for step in spec.steps})
            if not voices_of(models):
                return Check("contract", "refused", "", "", "it holds no voice")
        except VoiceConversionError as error:
            return Check("contract", "refused", reason=str(error))
        figure = f"{len(mine)} models that clients ask"
        if self.other is None:
            return Check("contract", "left out", figure, "", "there is no release to compare with")
        wrong = []
        for name, model in self.other.contract.items():
            if name not in mine:
                wrong.append(f"{name} is missing")
            elif mine[name] != model:
                fields = [field for field in model if mine[name].get(field) != model[field]]
                wrong.append(f"{name} has other {' and '.join(fields)}")
        verdict: Verdict = "refused" if wrong else "passed"
        return Check("contract", verdict, figure, f"that of {self.other.number}", checks.listed(wrong))

    def _loads(self) -> Check:
        """Load the release again and again, and leave the last server running."""
        wanted = self.options.loads
        for number in range(wanted):
            self.served.close()
            try:
                self.served.start()
            except InferenceError as error:
                return Check(
                    "loads", "refused", f"{number} of {wanted}", "all", str(error), {"loads": number}
                )
        return Check("loads", "passed", f"{wanted} of {wanted}", "all", "", {"loads": wanted})

    def _open(self, served: ServedRelease) -> dict[str, Converter]:
        voices = [voice.name for voice in voices_of(ModelRepository(served.path))]
        target = self.suite.targets[0]
        return open_converters(served.engine, voices, target.audio, target.sample_rate)

    def _compared(self) -> dict[str, Converter]:
        """The voices of the release to compare with, whose server is started now."""
        if self.against is None or self.other is None:
            return {}
        try:
            self.against.start()
            return self._open(self.against)
        except InferenceError as error:
            raise ReleaseError(f"release {self.other.number}, to compare with, failed: {error}") from error

    def _speed(
        self, voices: dict[str, Converter], compared: dict[str, Converter], speech: dict[str, FloatArray]
    ) -> Iterator[Check]:
        try:
            yield from speed_checks(voices, compared, speech, self.options.rounds)
        except VoiceConversionError as error:
            self._blame(error)
            yield from (Check(name, "refused", reason=str(error)) for name in SPEED)

    def _blame(self, error: VoiceConversionError) -> None:
        """Raise where it is the other release that failed."""
        if self.against is not None and self.other is not None and (ending := self.against.ending):
            raise ReleaseError(
                f"the server of release {self.other.number}, to compare with, ended by itself with {ending}"
            ) from error

    def _judges(self, voices: dict[str, Converter], compared: dict[str, Converter]) -> Iterator[Check]:
        if self.judges is None:
            asked = self.options.judges
            reason = (
                "there is no release to compare with" if asked else "the judges were left out (--no-judges)"
            )
            yield from (Check(name, "left out", reason=reason) for name in MARGINS)
            return
        try:
            yield from judge_checks(self.judges, voices, compared, self.suite)
        except VoiceConversionError as error:
            self._blame(error)
            yield from (Check(name, "refused", reason=str(error)) for name in MARGINS)
