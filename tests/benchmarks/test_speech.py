"""Source material and stage times, against cases worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline import stage_medians
from speech import SpeechError, find_recordings, looped

from autovoice import ConversionProfile


def test_recordings_are_spread_over_a_folder(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "take.FLAC").touch()
    (tmp_path / "notes.txt").touch()
    assert [file.parent.name for file in find_recordings(tmp_path, 3)] == ["0", "4", "8"]
    assert len(find_recordings(tmp_path, 100)) == 9


def test_a_folder_without_speech_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpeechError, match=tmp_path.name):
        find_recordings(tmp_path, 3)


def test_speech_is_repeated_to_the_length_asked_for() -> None:
    audio = np.arange(3, dtype=np.float32)
    assert looped(audio, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert looped(audio, 2).tolist() == [0, 1]


def test_a_stage_and_its_streaming_twin_are_one() -> None:
    runs = [
        {"synthesizer": 1.0, "synthesizer_stream": 4.0, "resample": 0.5},
        {"synthesizer_stream": 9.0, "resample": 0.5},
        {"synthesizer_stream": 6.0, "resample": 2.5},
    ]
    profiles = [ConversionProfile(0.0, 1.0, 0.0, 0.0, stages, "cpu") for stages in runs]
    assert stage_medians(profiles) == {"synthesizer": 6.0, "resample": 0.5}
