"""Loads a plan and prints what is in it: ``python -m autovoice_export.tensorrt.load PLAN [PLUGIN_LIBRARY]``.

In a process of its own, because a plan that cannot be loaded leaves its GPU memory behind, or a crash.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from autovoice_export.build_errors import PlanError
from autovoice_export.tensorrt import runtime

_SECONDS = 600


def try_loading(plan: Path, library: Path | None, wanted: Mapping[str, str]) -> None:
    """Loads a plan in another process and sees that its plugins are in it.

    Args:
        plan: the file.
        library: with the plugins.
        wanted: version of the plugin of each op in it.

    Raises:
        PlanError: it cannot be loaded, or something else stands where a plugin should.
    """
    command = [sys.executable, "-m", __name__, str(plan), str(library or ""), json.dumps(dict(wanted))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PlanError(f"the new plan does not load: {lines[-1]}")
    require_plugins(json.loads(done.stdout.strip().splitlines()[-1]), wanted)


def require_plugins(layers: Iterable[str], wanted: Iterable[str]) -> None:
    """Sees that layers of plugins are among the layers of a plan.

    Raises:
        PlanError: one is not.
    """
    found = list(layers)
    for op in wanted:
        if not any(op in layer for layer in found):
            raise PlanError(
                f"the plan holds no layer of the plugin {op}; its layers: {', '.join(found)[:300]}"
            )


def main() -> int:
    """Prints the layers of a plan as one line of JSON."""
    plan, library, wanted = sys.argv[1:4]
    try:
        runtime.load_plugins(Path(library) if library else None, json.loads(wanted))
        print(json.dumps(runtime.layers(Path(plan))))
    except PlanError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
