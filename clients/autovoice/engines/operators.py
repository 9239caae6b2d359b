"""What operators cost, by ONNX Runtime's profiler."""

from __future__ import annotations

import json
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from autovoice.engines.onnx_session import OnnxSession
from autovoice.repository.file_check import check_file
from autovoice.repository.model_config import ModelSpec
from autovoice.results import OperatorTime

_NODE_SUFFIX = "_kernel_time"
_Key = tuple[str, str, str, str]


class OperatorRecorder:
    """Makes sessions that record what their operators cost, until `finish`.

    ONNX Runtime records a million runs of operators for each session, and leaves out what comes after.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._sessions: list[tuple[str, OnnxSession]] = []
        self._found: tuple[OperatorTime, ...] | None = None

    def load_session(self, spec: ModelSpec, *, device: str, threads: int) -> OnnxSession:
        """Make a session that nobody else uses.

        Raises:
            RepositoryError: when the file is corrupt or its tensors differ from the config's.
            DeviceError: when the device cannot run it.
        """
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="autovoice-", ignore_cleanup_errors=True)
            # ONNX Runtime adds the time alone, and two sessions may start in the same millisecond.
            prefix = str(Path(self._folder.name, str(len(self._sessions))))

            def enable(options: Any) -> None:
                options.enable_profiling = True
                options.profile_file_prefix = prefix

            session = OnnxSession(spec, device, threads, enable)
            self._sessions.append((spec.name, session))
        check_file(spec, session.inputs, session.outputs)
        return session

    def finish(self) -> tuple[OperatorTime, ...]:
        """End the recording; what cost most comes first."""
        with self._lock:
            if self._found is None:
                files = [(model, session.end_profiling()) for model, session in self._sessions]
                self._found = _added_up(
                    run for model, file in files for run in _runs(model, json.loads(file.read_text()))
                )
                self._sessions.clear()
                if self._folder is not None:
                    self._folder.cleanup()
            return self._found


def _runs(model: str, events: Iterable[dict[str, Any]]) -> Iterator[tuple[_Key, float]]:
    """Every run of an operator, and of a GPU's kernel, with its milliseconds."""
    for event in events:
        milliseconds, facts = event.get("dur", 0) / 1e3, event.get("args", {})
        kind, name = event.get("cat"), str(event.get("name"))
        if kind == "Node" and name.endswith(_NODE_SUFFIX):
            operator = str(facts.get("op_name", ""))
            yield ("node", model, operator, name.removesuffix(_NODE_SUFFIX)), milliseconds
        elif kind == "Kernel":
            yield ("kernel", model, str(facts.get("op_name", "")), name), milliseconds


def _added_up(runs: Iterable[tuple[_Key, float]]) -> tuple[OperatorTime, ...]:
    times: defaultdict[_Key, list[float]] = defaultdict(list)
    totals: defaultdict[str, float] = defaultdict(float)
    for key, milliseconds in runs:
        times[key].append(milliseconds)
        totals[key[0]] += milliseconds
    spent = {key: sum(values) for key, values in times.items()}
    return tuple(
        OperatorTime(
            model=model,
            operator=operator,
            name=name,
            is_kernel=kind == "kernel",
            calls=len(times[kind, model, operator, name]),
            total_ms=milliseconds,
            share=milliseconds / totals[kind] if totals[kind] else 0.0,
        )
        for (kind, model, operator, name), milliseconds in sorted(
            spent.items(), key=lambda item: item[1], reverse=True
        )
    )
