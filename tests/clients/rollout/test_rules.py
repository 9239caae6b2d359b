"""The rules that ship, in Prometheus' own test runner: alerts fire on bad series and not on good ones."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import pytest

import autovoice.rollout

RULES = Path(str(resources.files(autovoice.rollout))) / "prometheus" / "rules.yml"
Series = Mapping[str, str]
LATE = "85s"


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool: apt-get install prometheus")
    return found


def up(role: str, release: int, values: str = "1x90") -> Series:
    return {f'up{{job="triton", release="{release}", role="{role}", instance="{release}"}}': values}


def envoy(release: int, protocol: str = "http", **rates: float) -> Series:
    """Counters of Envoy; `rates`, a second: completed, resets, a class of HTTP codes, a gRPC code."""
    cluster = f'release="{release}", protocol="{protocol}"'
    names = {
        "completed": "envoy_cluster_upstream_rq_completed",
        "resets": "envoy_cluster_upstream_rq_tx_reset",
    }
    series = {}
    for name, rate in {"resets": 0.0, **rates}.items():
        if name in names:
            series[f"{names[name]}{{{cluster}}}"] = f"0+{rate}x90"
        elif name.startswith("http_"):
            label = f'envoy_response_code_class="{name[-1]}"'
            # Such a counter begins with the first request of its kind.
            series[f"envoy_cluster_upstream_rq_xx{{{cluster}, {label}}}"] = f"_x30 {rate}+{rate}x60"
        else:
            label = f'code="{name.removeprefix("grpc_")}"'
            series[f"envoy_cluster_grpc_answers{{{cluster}, {label}}}"] = f"_x30 {rate}+{rate}x60"
    return series


def triton(release: int, good: float, failed: float = 0.0, reason: str = "OTHER", **latency: float) -> Series:
    """Counters of Triton, as 2.51 has them for ensembles, and quantiles of the latency in milliseconds."""
    model = f'release="{release}", model="voice_conversion"'
    series = {
        f'nv_inference_request_success{{{model}, version="1"}}': f"0+{good}x90",
        f'nv_inference_request_success{{{model}, version="{release}"}}': "0x90",
        f'nv_inference_request_failure{{{model}, version="1", reason="{reason}"}}': f"0+{failed}x90",
        f'nv_inference_request_failure{{{model}, version="{release}", reason="{reason}"}}': f"0+{failed}x90",
    }
    for quantile, milliseconds in latency.items():
        label = f'version="1", quantile="0.{quantile[1:]}"'
        series[f"nv_inference_request_summary_us{{{model}, {label}}}"] = f"{milliseconds * 1000}x90"
    return series


def audio(release: int, answers: float, **faults: float) -> Series:
    model = f'release="{release}", model="trim_output", version="{release}"'
    return {
        f"autovoice_answers_total{{{model}}}": f"0+{answers}x90",
        **{
            f'autovoice_faulty_answers_total{{{model}, fault="{fault}"}}': f"0+{rate}x90"
            for fault, rate in faults.items()
        },
    }


STABLE = {**up("stable", 7), **envoy(7, completed=18), **triton(7, good=18, p9=100, p99=200)}
CANDIDATE = up("candidate", 8)

BAD: dict[str, tuple[str, Series]] = {
    "HTTP 500": ("ReleaseRequestsFail", envoy(8, completed=2, http_5=2)),
    "HTTP 400 of its own": ("ReleaseRequestsFail", envoy(8, completed=2, http_2=1, http_4=1)),
    "one in eight": ("ReleaseRequestsFail", envoy(8, completed=8, http_5=1)),
    "one in thirty": ("ReleaseRequestsFail", envoy(8, completed=30, http_5=1)),
    "few requests": ("ReleaseRequestsFail", envoy(8, completed=0.4, http_5=0.4)),
    "gRPC INTERNAL": ("ReleaseRequestsFail", envoy(8, "grpc", completed=2, http_2=2, grpc_13=2)),
    "gRPC INVALID_ARGUMENT": ("ReleaseRequestsFail", envoy(8, "grpc", completed=2, http_2=2, grpc_3=2)),
    "clients that gave up": ("ReleaseRequestsFail", envoy(8, completed=1, resets=1)),
    "in gRPC streams": ("ReleaseModelFails", triton(8, good=1, failed=1)),
    "rejected": ("ReleaseModelFails", triton(8, good=1, failed=1, reason="REJECTED")),
    "one model in thirty": ("ReleaseModelFails", triton(8, good=29, failed=1)),
    "not finite": ("ReleaseAnswersNotFinite", audio(8, 2, not_finite=2)),
    "silent": ("ReleaseAnswersFaulty", audio(8, 0.5, silent=0.25)),
    "clipped": ("ReleaseAnswersFaulty", audio(8, 0.5, clipped=0.25)),
    "p90 twice": ("ReleaseSlow", triton(8, good=5, p9=200, p99=300)),
    "p99 thrice": ("ReleaseSlow", triton(8, good=20, p9=100, p99=600)),
}
GOOD: dict[str, Series] = {
    "no request": {},
    "no fault": {
        **envoy(8, completed=2, http_2=2),
        **envoy(8, "grpc", completed=2, http_2=2, grpc_0=2),
        **triton(8, good=4, p9=100, p99=200),
        **audio(8, 4, not_finite=0, silent=0, clipped=0),
    },
    "two failures of two": {**envoy(8, completed=2 / 60, http_5=2 / 60), **triton(8, good=0, failed=2 / 60)},
    "one in a hundred": {**envoy(8, completed=20, http_5=0.2), **triton(8, good=19.8, failed=0.2)},
    "cancelled": {
        **envoy(8, "grpc", completed=2, http_2=2, grpc_1=2),
        **triton(8, good=1, failed=1, reason="CANCELED"),
    },
    "few silent": audio(8, 2, silent=0.3, clipped=0.3),
    "two silent": audio(8, 2 / 60, silent=2 / 60),
    "slow, few answers": triton(8, good=2, p9=400, p99=900),
    "a little slower": triton(8, good=30, p9=140, p99=390),
    "faster": triton(8, good=30, p9=10, p99=20),
}
LIKE_STABLE: dict[str, tuple[Series, Series]] = {
    "bad requests": (envoy(7, completed=18, http_4=6), envoy(8, completed=2, http_4=0.7)),
    "a full server": (envoy(7, "grpc", completed=18, grpc_14=9), envoy(8, "grpc", completed=2, grpc_14=1.1)),
    "failing models": (triton(7, good=9, failed=9), triton(8, good=1, failed=1.1)),
    "clipped sources": (audio(7, 18, clipped=9), audio(8, 2, clipped=1.1)),
    "silence": (audio(7, 18, silent=9), audio(8, 2, silent=1.1)),
}


def run(promtool: str, folder: Path, series: Series, alerts: set[str], at: str, rules: Path = RULES) -> str:
    """What promtool objects to just these alerts of release 8 firing at a time; empty for nothing."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(alerts)]
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "5s" if at == LATE else "1s",  # the fewer the quicker
        "tests": [
            {
                "interval": "1s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing", release="8"})',
                        "eval_time": at,
                        "exp_samples": samples,
                    }
                ],
            }
        ],
    }
    path = folder / "test.json"
    path.write_text(json.dumps(test))
    done = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.parametrize("case", BAD)
def test_alerts_fire_on_bad_series(promtool: str, tmp_path: Path, case: str) -> None:
    alert, series = BAD[case]
    assert run(promtool, tmp_path, {**STABLE, **CANDIDATE, **series}, {alert}, LATE) == ""


@pytest.mark.parametrize("case", GOOD)
def test_alerts_do_not_fire_on_good_series(promtool: str, tmp_path: Path, case: str) -> None:
    assert run(promtool, tmp_path, {**STABLE, **CANDIDATE, **GOOD[case]}, set(), LATE) == ""


@pytest.mark.parametrize("case", LIKE_STABLE)
def test_what_the_stable_release_has_too_is_no_reason(promtool: str, tmp_path: Path, case: str) -> None:
    """The same series fire without a stable release to compare with."""
    stable, series = LIKE_STABLE[case]
    assert run(promtool, tmp_path, {**up("stable", 7), **CANDIDATE, **stable, **series}, set(), LATE) == ""
    alone = {**up("former", 7), **CANDIDATE, **stable, **series}
    assert run(promtool, tmp_path, alone, set(), LATE) != ""


def test_failures_fire_within_seconds(promtool: str, tmp_path: Path) -> None:
    """Two requests a second that all fail, from second 31 on: the third failure is enough."""
    series = {**STABLE, **CANDIDATE, **envoy(8, completed=2, http_5=2)}
    assert run(promtool, tmp_path, series, set(), "30s") == ""
    assert run(promtool, tmp_path, series, {"ReleaseRequestsFail"}, "32s") == ""


def test_counters_that_begin_with_failures_count_from_zero(promtool: str, tmp_path: Path) -> None:
    """A release has no counters before its first request."""
    series = dict.fromkeys(envoy(8, completed=3, http_5=3), "_x30 3+3x60")
    assert run(promtool, tmp_path, {**STABLE, **CANDIDATE, **series}, {"ReleaseRequestsFail"}, "31s") == ""


def test_a_server_that_ends_fires_and_one_that_starts_does_not(promtool: str, tmp_path: Path) -> None:
    ended = up("candidate", 8, "0x20 1x20 0x50")
    assert run(promtool, tmp_path, {**STABLE, **ended}, set(), "15s") == ""
    assert run(promtool, tmp_path, {**STABLE, **ended}, set(), "41s") == ""
    assert run(promtool, tmp_path, {**STABLE, **ended}, {"ReleaseServerEnded"}, "44s") == ""


def test_counters_that_begin_anew_are_no_failures(promtool: str, tmp_path: Path) -> None:
    """A server or Envoy that was started again counts from zero."""
    label = 'release="8", protocol="http"'
    series = {
        f"envoy_cluster_upstream_rq_completed{{{label}}}": "9000+2x60 0+2x30",
        f'envoy_cluster_upstream_rq_xx{{{label}, envoy_response_code_class="5"}}': "900x60 0x30",
        f"envoy_cluster_upstream_rq_tx_reset{{{label}}}": "0x90",
    }
    for at in ("62s", "65s", "80s"):
        assert run(promtool, tmp_path, {**STABLE, **CANDIDATE, **series}, set(), at) == ""


def test_a_broken_rule_is_seen(promtool: str, tmp_path: Path) -> None:
    """These tests do not pass by themselves: a rule whose condition is turned round fails them."""
    text = RULES.read_text(encoding="utf-8")
    broken = tmp_path / "rules.yml"
    broken.write_text(text.replace("release:failed_excess:10s > 0.1", "release:failed_excess:10s < 0.1"))
    alert, series = BAD["few requests"]
    assert run(promtool, tmp_path, {**STABLE, **CANDIDATE, **series}, {alert}, "40s", broken) != ""
    assert run(promtool, tmp_path, {**STABLE, **CANDIDATE, **series}, {alert}, "40s") == ""


def test_configuration_is_one_that_prometheus_takes(promtool: str, tmp_path: Path) -> None:
    for path in RULES.parent.iterdir():
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"))
    for name in ("envoy.json", "triton.json"):
        (tmp_path / name).write_text("[]")
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
