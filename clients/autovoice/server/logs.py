"""Triton's log, line by line: what it means for a start, and how it is shown."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

LEVELS = ("error", "warning", "info", "verbose")
Level = Literal["error", "warning", "info", "verbose"]

_LINE = re.compile(
    r"(?:(?P<iso>\d{4}-\d\d-\d\dT[\d:]+Z) )?(?P<level>[EWIV])(?:\d{4} [\d:.]+)? \d+ "
    r"(?P<source>\S+:\d+)\] (?P<text>.*)"
)
_LEVEL_NAMES: dict[str, Level] = {"E": "error", "W": "warning", "I": "info", "V": "verbose"}
# What is no log line but tells why the server ended: a wrong option, or its last words.
_LAST_WORDS = re.compile(r"error: |\S*tritonserver: ")
_REQUEST = re.compile(r"\[request id: (?P<id>[^\]]*)\] ?")
_LOADED = re.compile(r"successfully loaded '(?P<model>[^']+)'")
_MODELS_CHANGED = re.compile(r"successfully (un)?loaded '")
_CRASH = re.compile(r"Signal \((?P<number>\d+)\) received\.")
_EXCEPTION = re.compile(r"\s*what\(\):\s+(?P<reason>.*)")
_FAILED = re.compile(
    r"(failed to load|Poll failed for model directory) '(?P<model>[^']+)'( version \d+)?: (?P<reason>.*)"
)
# What Triton reports as errors on every machine without an NVIDIA driver, where nothing is wrong.
_NO_DRIVER = re.compile(
    r"CUDA driver version is insufficient|CudaDriverHelper|no pinned memory pool|no CUDA-capable device"
)


@dataclass(frozen=True)
class LogRecord:
    """One line of the server's log.

    Attributes:
        level: its severity.
        text: the message.
        source: file and line in the server, empty for output that is no log line.
        time: as the server wrote it, ISO 8601.
        request_id: of the request it is about, if it says so.
    """

    level: Level
    text: str
    source: str = ""
    time: str = ""
    request_id: str = ""

    @property
    def loaded_model(self) -> str | None:
        """The model that this line reports as loaded."""
        match = _LOADED.search(self.text)
        return match["model"] if match else None

    @property
    def changes_models(self) -> bool:
        """Whether this line reports a model as loaded or unloaded."""
        return bool(_MODELS_CHANGED.search(self.text))

    @property
    def caught_signal(self) -> int | None:
        """The signal that this line reports as caught by the server."""
        match = _CRASH.fullmatch(self.text)
        return int(match["number"]) if match else None

    @property
    def exception(self) -> str | None:
        """What this line reports as the message of an exception that nobody caught."""
        match = _EXCEPTION.fullmatch(self.text)
        return match["reason"] if match else None

    @property
    def failed_model(self) -> tuple[str, str] | None:
        """The model that this line reports as not loaded, and why."""
        match = _FAILED.search(self.text)
        return (match["model"], match["reason"]) if match else None

    def as_json(self) -> str:
        """One JSON object; empty fields are left out."""
        fields = {
            "time": self.time,
            "level": self.level,
            "source": self.source,
            "request_id": self.request_id,
            "message": self.text,
        }
        return json.dumps({name: value for name, value in fields.items() if value})

    def as_text(self) -> str:
        """One line for people."""
        request = f" request {self.request_id}:" if self.request_id else ""
        return f"{self.time} {self.level}{request} {self.text}".lstrip()

    def shown_at(self, level: Level) -> bool:
        """Whether somebody who asked for `level` wants to see this line."""
        return LEVELS.index(self.level) <= LEVELS.index(level)


def parse_line(line: str) -> LogRecord:
    """Read a line of the server's output; what is no log line (tables, native messages) counts as verbose."""
    line = line.rstrip("\n")
    match = _LINE.match(line)
    if match is None:
        return LogRecord("error" if _LAST_WORDS.match(line) else "verbose", line)
    text = match["text"]
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    request = _REQUEST.search(text)
    identifier = request["id"] if request and request["id"] != "<id_unknown>" else ""
    level: Level = "verbose" if _NO_DRIVER.search(text) else _LEVEL_NAMES[match["level"]]
    return LogRecord(level, _REQUEST.sub("", text), match["source"], match["iso"] or "", identifier)
