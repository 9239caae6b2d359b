"""Write `manifests/` from the chart, for those who use no Helm: `python deploy/render.py`.

It needs `pip install helm-python-sdk`, which holds Helm itself. The same objects are printed by
`helm template autovoice deploy/chart --namespace autovoice [--values deploy/values/NAME.yaml]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parent
CHART = DEPLOY / "chart"
MANIFESTS = DEPLOY / "manifests"
EXAMPLES = {
    "autovoice": None,
    "canary": DEPLOY / "values/canary.yaml",
    "kserve": DEPLOY / "values/kserve.yaml",
}


def read_values(example: str) -> dict[str, Any]:
    """Values of an example, beyond those of the chart."""
    path = EXAMPLES[example]
    return {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))


def render(values: Mapping[str, Any]) -> str:
    """The chart's objects as Helm renders them, one YAML document each."""
    import helm_python

    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(dict(values))
        files = chart.render(dict(values), name="autovoice", namespace="autovoice")
    parts = [
        part.strip("\n")
        for name in sorted(files)
        for part in files[name].split("\n---\n")
        if yaml.safe_load(part)
    ]
    return "".join(f"---\n{part}\n" for part in parts)


if __name__ == "__main__":
    MANIFESTS.mkdir(exist_ok=True)
    for example in EXAMPLES:
        text = f"# Rendered by deploy/render.py: {example}\n{render(read_values(example))}"
        (MANIFESTS / f"{example}.yaml").write_text(text, encoding="utf-8")
