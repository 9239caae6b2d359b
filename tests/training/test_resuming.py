"""A run that is resumed ends where an uninterrupted one does, and goes on with the settings it began with."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from toy_corpus import make_content, make_synthesizer

from autovoice_training.train.loop import CHANGEABLE, TrainingLoop

pytestmark = pytest.mark.heavy

QUIET = Console(quiet=True)
BOTH = pytest.mark.parametrize("make", [make_content, make_synthesizer])


def tensors(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested state by their place in it."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: value for place, part in items for key, value in tensors(part, f"{name}.{place}").items()}


@BOTH
def test_resumed_run_equals_an_uninterrupted_one(make: Any, corpus_folder: Path, tmp_path: Path) -> None:
    """Discriminators too, which took part in the step before the interruption."""
    straight: TrainingLoop = make(corpus_folder, tmp_path / "straight")
    assert not straight.resume()
    assert straight.train(QUIET)
    assert not make(corpus_folder, tmp_path / "broken").train(QUIET, deadline=0.0)
    torch.manual_seed(99)  # a new process has another generator
    resumed: TrainingLoop = make(corpus_folder, tmp_path / "broken")
    assert resumed.resume()
    assert resumed.step == 1
    assert resumed.train(QUIET)
    expected, found = tensors(straight.state()), tensors(resumed.state())
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
    lines = (tmp_path / "broken" / f"{resumed.name}.jsonl").read_text().splitlines()
    assert len(lines) == 3, "steps 1, 2 and 4"


@BOTH
def test_every_changed_setting_is_refused(make: Any, corpus_folder: Path, tmp_path: Path) -> None:
    loop: TrainingLoop = make(corpus_folder, tmp_path)
    loop.run.mkdir(exist_ok=True)
    loop.step = 3
    loop.save()
    loop.step, before = 0, loop.config
    for name in (field.name for field in fields(before) if field.name not in CHANGEABLE):
        old = getattr(before, name)
        loop.config = replace(before, **{name: old + 1 if isinstance(old, int) else old / 2})
        new = getattr(loop.config, name)
        with pytest.raises(ValueError, match=rf"\.pt was made with {loop.name}\.{name} = ") as refusal:
            loop.resume()
        assert f"{name} = {old!r}, and now it is {new!r}" in str(refusal.value)
    assert loop.step == 0, "nothing was taken up"
    loop.config, loop.seed = before, loop.seed + 1
    with pytest.raises(ValueError, match="seed = 5, and now it is 6"):
        loop.resume()
    changeable = [name for name in CHANGEABLE if hasattr(before, name)]
    loop.config, loop.seed = replace(before, **dict.fromkeys(changeable, 9)), loop.seed - 1
    assert loop.resume()
    assert loop.step == 3
