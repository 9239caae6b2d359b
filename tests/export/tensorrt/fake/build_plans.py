"""Runs `autovoice` with the stand-in for TensorRT, and a comparison that only notes what it was asked for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from autovoice.cli.main import run
from autovoice_export.tensorrt import parity
from autovoice_export.build_errors import PlanError


def compare_plan(plan: Path, model: Any, profiles: Any, reference: Any, tolerance: Any) -> dict[str, float]:
    """Runs the inputs in ONNX Runtime alone."""
    json.loads(plan.read_bytes())  # it is there, under a name that no server looks for
    if os.environ.get("FAKE_TENSORRT_FAIL") == "compare":
        raise PlanError("profile short: AUDIO is 3 times as far from ONNX Runtime's as allowed")
    feed = next(parity.example_feeds(model, profiles[0], reference))
    return dict.fromkeys(reference(feed), 0.25)


parity.compare_plan = compare_plan
sys.exit(run(sys.argv[1:]))
