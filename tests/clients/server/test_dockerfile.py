"""The Dockerfile without Docker: its sources, its paths, and its CPU image's steps replayed."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer

from autovoice.cli.main import make_app
from autovoice.repository.plans import LIBRARY_PATTERN, PLUGINS_VARIABLE
from autovoice_export.tensorrt.plan_config import CONFIG_NAME

ROOT = Path(__file__).resolve().parents[3]
INSTRUCTION = re.compile(r"^(FROM|COPY|RUN|CMD|ENTRYPOINT|HEALTHCHECK|USER|ENV|WORKDIR|EXPOSE|ARG)\s+(.*)$")


@dataclass
class Stage:
    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.steps if name == instruction]


def read_stages() -> dict[str, Stage]:
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    stages: dict[str, Stage] = {}
    for line in text.splitlines():
        match = INSTRUCTION.match(line)
        if match is None:
            assert not line.strip() or line.startswith(("#", "STOPSIGNAL")), line
        elif match[1] == "FROM":
            base, _, name = match[2].partition(" AS ")
            stages[name] = Stage(name, base)
        elif stages:
            list(stages.values())[-1].steps.append((match[1], match[2]))
    return stages


STAGES = read_stages()
SERVING = [STAGES["cpu"], STAGES["gpu"]]


def tracked() -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return listing.stdout.splitlines()


def in_context(name: str) -> bool:
    """Whether .dockerignore lets a file through: the last rule that matches it or a folder above decides."""
    parts = name.split("/")
    prefixes = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    kept = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        bare = pattern.removeprefix("**/")
        names = parts if bare != pattern else prefixes[: bare.count("/") + 1][-1:]
        if any(fnmatch.fnmatch(candidate, bare) for candidate in names):
            kept = rule.startswith("!")
    return kept


def copies(stage: Stage) -> list[tuple[str | None, list[str], str]]:
    made = []
    for text in stage.all("COPY"):
        words = text.split()
        source_stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
        made.append((source_stage, words[:-1], words[-1]))
    return made


def environment(stage: Stage) -> dict[str, str]:
    return dict(item.split("=", 1) for item in stage.all("ENV"))


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_every_copy_has_a_source(stage: Stage) -> None:
    present = [name for name in tracked() if in_context(name)]
    for source_stage, sources, _ in copies(stage):
        for source in sources:
            if source_stage is None:
                assert any(name == source or name.startswith(source + "/") for name in present), source
            else:
                made = STAGES[source_stage]
                done = " ".join([*made.all("RUN"), *(target for _, _, target in copies(made))])
                assert source in done, f"{source_stage} does not make {source}"


def test_what_the_context_leaves_out() -> None:
    assert in_context("clients/autovoice/server/backend/onnxruntime/model.py")
    for secret in (
        "api.key",
        "clients/tls.pem",
        ".env",
        "clients/.env",
        "training/checkpoints/base.safetensors",
    ):
        assert not in_context(secret), secret
    for other in ("tests/conftest.py", ".git/config", "benchmarks/pipeline.py", "data/corpus/a.flac"):
        assert not in_context(other), other


@pytest.mark.parametrize("stage", SERVING, ids=["cpu", "gpu"])
def test_image_runs_commands_that_exist_as_nobody_special(stage: Stage) -> None:
    (command,) = (json.loads(text) for text in stage.all("CMD"))
    (check,) = (json.loads(text.partition("CMD ")[2]) for text in stage.all("HEALTHCHECK"))
    group = typer.main.get_command(make_app())
    for program, name, *arguments in (command, check):
        assert program == "autovoice"
        assert any("autovoice-*.whl" in step for step in stage.all("RUN"))  # which installs the program
        group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
    names = [name for name, _ in stage.steps]
    assert names.index("USER") < names.index("CMD")
    assert stage.all("USER") == ["autovoice"]
    assert any("useradd" in step and "autovoice" in step for step in stage.all("RUN"))
    assert (None, ["model_repository"], environment(stage)["AUTOVOICE_REPOSITORY"]) in copies(stage)


def test_plugins_are_compiled_and_reach_what_needs_them() -> None:
    """The names in the Dockerfile are those that CMake makes and that the programs look for."""
    compile_step = STAGES["plugins"].all("RUN")[-1]
    library = re.search(r"cp /tmp/build/(\S+) (\S+)", compile_step)
    assert library is not None
    assert library[1] == LIBRARY_PATTERN.format("*")
    assert "AUTOVOICE_REQUIRE=plugins" in compile_step  # rather than an image without them
    for name in ("gpu", "plans"):
        stage = STAGES[name]
        folder = environment(stage)[PLUGINS_VARIABLE]
        assert ("plugins", [folder], folder) in copies(stage)
        assert library[2].rstrip("/") == folder


def test_plans_are_built_by_the_tensorrt_that_serves_them() -> None:
    """One version of NVIDIA's images throughout: a plan needs the TensorRT that built it."""
    stage = STAGES["plans"]
    tags = {STAGES[name].base.rpartition(":")[2] for name in ("plugins", "plans", "gpu")}
    assert tags == {"${TRITON}-py3"}
    assert STAGES["plugins"].base == stage.base
    (command,) = (json.loads(text) for text in stage.all("CMD"))
    assert command[:2] == ["autovoice", "build"]
    context = typer.main.get_command(make_app()).commands["build"].make_context("build", command[2:])  # type: ignore[attr-defined]
    assert context.params["engine"] == "tensorrt"
    (install,) = (step for step in stage.all("RUN") if "pip install" in step)
    extra = re.search(r"\[(\w+)\]", install)
    assert extra is not None
    assert any(
        f"extra == '{extra[1]}'" in line.replace('"', "'") and line.startswith("polygraphy")
        for line in importlib.metadata.requires("autovoice") or []
    )


def test_commands_in_the_head_of_the_file_parse() -> None:
    head = "\n".join(
        line.lstrip("# ")
        for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").split("ARG TRITON")[0].splitlines()
    ).replace("\\\n", " ")
    assert set(re.findall(r"--target (\w+)", head)) == {"cpu", "gpu", "plans"}
    (serve,) = re.findall(r"^docker run .* autovoice:gpu +autovoice serve (.+)$", head, re.MULTILINE)
    context = typer.main.get_command(make_app()).commands["serve"].make_context("serve", serve.split())  # type: ignore[attr-defined]
    assert context.params["config_name"] == CONFIG_NAME


def test_images_are_pinned_and_hold_no_secret() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "ARG TRITON=26.07" in text
    for stage in STAGES.values():
        assert ":" in stage.base
        assert "latest" not in stage.base
        for instruction, step in stage.steps:
            if instruction in ("ENV", "ARG", "RUN"):
                assert not re.search(r"(?i)(key|secret|token|password)\s*=", step), step


@pytest.mark.server
@pytest.mark.slow
def test_cpu_image_replayed(installed: None, repository: Path, cache: Path, tmp_path: Path) -> None:
    """Its steps from an exported context, in a new environment: build, install, start, check, stop.

    Left out are those that need root: system packages and the user.
    """
    context = tmp_path / "context"
    for name in tracked():
        if in_context(name) and not name.startswith("model_repository/"):
            target = context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=240)
    programs = tmp_path / "venv" / "bin"
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "AUTOVOICE_REPOSITORY": str(repository),
        "XDG_CACHE_HOME": str(cache / "image"),
    }
    wheels = tmp_path / "wheels"
    for stage, beginning in (("wheel", "pip wheel"), ("cpu", "pip install")):
        (step,) = [step for step in STAGES[stage].all("RUN") if step.startswith(beginning)]
        # What pip has downloaded before need not come again.
        step = step.replace("/wheels", str(wheels)).replace("--no-cache-dir", "-q")
        done = subprocess.run(
            ["sh", "-euc", step], cwd=context, env=environment, capture_output=True, text=True, timeout=400
        )
        if done.returncode and re.search(r"(?i)connection|name resolution|timed out", done.stderr):
            pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    command = json.loads(STAGES["cpu"].all("CMD")[0])
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    serve = [str(programs / command[0]), *command[1:], *ports]
    process = subprocess.Popen(serve, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    try:
        _, _, url = process.stdout.readline().split()
        check = json.loads(STAGES["cpu"].all("HEALTHCHECK")[0].partition("CMD ")[2])
        arguments = [url if argument.startswith("http://") else argument for argument in check[1:]]
        run = [str(programs / check[0]), *arguments]
        assert subprocess.run(run, env=environment, check=False, timeout=60, cwd=tmp_path).returncode == 0
        # Bound to all addresses and without a key: nobody may change the models.
        request = urllib.request.Request(f"{url}/v2/repository/models/target_pitch/unload", data=b"{}")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=10)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0
    assert subprocess.run(run, env=environment, check=False, timeout=60, cwd=tmp_path).returncode == 1
