"""Building plans: the command from end to end with a stand-in for TensorRT, and everything around it.

Real here: Polygraphy, ONNX Runtime, the files, the processes, the plugin loader (with some shared library).
Not real: TensorRT itself (`fake/tensorrt.py`), its GPU, and the comparison of what a plan computes. What both
kinds of TensorRT share, the parser, profiles and the builder, is real in `test_engines.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest

from autovoice.cli.main import run
from autovoice.errors import ConfigurationError, RepositoryError
from autovoice.repository import plans as serving
from autovoice.repository.model_config import read_config
from autovoice.repository.plans import Gpu, PlanManifest, check_plan, plan_arguments, sha256
from autovoice.repository.reader import ModelRepository
from autovoice.server.overrides import write_view
from autovoice_export.build_errors import ParityError, PlanError
from autovoice_export.onnx.graph import load_model, plugin_versions, without_functions
from autovoice_export.parity import session_run
from autovoice_export.tensorrt import plan_config
from autovoice_export.tensorrt.load import require_plugins
from autovoice_export.tensorrt.plan_config_check import check_plan_configs, models_for_plans
from autovoice_export.tensorrt.plans import plan_jobs, publish

A10, T4 = Gpu("NVIDIA A10", "8.6"), Gpu("Tesla T4", "7.5")
Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def build(root: Path, build_plans: Build) -> Build:
    """Runs ``autovoice build --engine tensorrt`` on the repository with the stand-in."""
    return partial(build_plans, root)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def plan_of(root: Path, model: str) -> dict[str, Any]:
    return dict(json.loads((root / model / "1" / "sm_86.plan").read_text()))


def manifest_of(root: Path, model: str) -> PlanManifest:
    return PlanManifest.load(root / model / "1" / "sm_86.plan.json")


def test_every_model_gets_its_plan(root: Path, build: Build, some_library: Path) -> None:
    for name in ("content_encoder", "pitch_extractor_stream", "synthesizer_stream"):
        shutil.rmtree(root / name / "configs")  # half of the models take half of the time
    done = build()
    assert done.returncode == 0, done.stderr
    repository = ModelRepository(root)
    jobs = plan_jobs(repository)
    assert [job.name for job in jobs] == ["content_encoder_stream", "pitch_extractor", "synthesizer"]
    for job in jobs:
        plan = plan_of(root, job.name)
        assert (plan["strongly_typed"], plan["tf32"]) == (True, False)
        assert plan["level"] == "NONE"
        assert {layer["LayerType"] for layer in plan["layers"]} - {"Kernel"} == set(job.plugins)
        manifest = manifest_of(root, job.name)
        assert manifest == check_plan(repository, job.name, job.config, A10, "11.1.0")
        assert manifest.onnx_sha256 == sha256(job.onnx_path)
        assert manifest.plugins == plugin_versions(job.model)
        assert manifest.plugin_library_sha256 == (sha256(some_library) if job.plugins else "")
        assert (manifest.gpu, manifest.tensorrt) == (A10, "11.1.0.106")
        assert f"{job.name:24} fp32 for NVIDIA A10, worst 25.0% of the tolerance" in done.stderr
    assert (root / "11.1.0.106.timing_cache").read_bytes()
    assert not list(root.rglob("*.partial"))

    # Again: nothing to do. Then one file and one configuration change.
    before = contents(root)
    done = build()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("up to date") == 3
    assert contents(root) == before
    model = load_model(root / "pitch_extractor" / "1" / "model.onnx")
    model.producer_name = "somebody else"
    onnx.save(model, root / "pitch_extractor" / "1" / "model.onnx")
    done = build("--model", "pitch_extractor", "--model", "synthesizer")
    assert "pitch_extractor          fp32 for NVIDIA A10" in done.stderr
    assert "synthesizer              up to date" in done.stderr
    assert (root / "11.1.0.106.timing_cache").read_text().count("+") > 3


def test_half_precision_is_decided_in_the_file(root: Path, build: Build) -> None:
    done = build("--precision", "fp16", "--model", "synthesizer")
    assert done.returncode == 0, done.stderr
    plan = plan_of(root, "synthesizer")
    assert onnx.TensorProto.FLOAT16 in plan["initializer_types"]
    manifest = manifest_of(root, "synthesizer")
    assert manifest.precision == "fp16"
    assert set(manifest.conversion) == {"AUDIO", "STATE_OUT"}
    assert all(0 < share < 1 for share in manifest.conversion.values())
    assert "up to date" not in build("--model", "synthesizer").stderr


def test_plans_for_several_gpus_get_all_their_names(root: Path, build: Build) -> None:
    done = build("--hardware-compatibility", "ampere_plus", "--model", "pitch_extractor")
    assert done.returncode == 0, done.stderr
    assert plan_of(root, "pitch_extractor")["level"] == "AMPERE_PLUS"
    repository = ModelRepository(root)
    config = plan_config.read_plan_config(root / "pitch_extractor")
    for gpu in (A10, Gpu("NVIDIA L4", "8.9"), Gpu("NVIDIA H100", "9.0")):
        assert check_plan(repository, "pitch_extractor", config, gpu, None).gpu == A10
    with pytest.raises(RepositoryError, match="no plan for Tesla T4"):
        check_plan(repository, "pitch_extractor", config, T4, None)
    # A plan of its own takes the place of the link, and the plan for several stays.
    (root / "pitch_extractor" / "1" / "sm_89.plan").resolve(strict=True)
    publish(
        b"{}",
        root / "pitch_extractor" / "1" / "sm_89.plan",
        replace(manifest_of(root, "pitch_extractor")),
    )
    assert plan_of(root, "pitch_extractor")["level"] == "AMPERE_PLUS"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"FAKE_TENSORRT_CREATORS": "PitchYin SpectralSynth"},
            "has no plugin for HarmonicSource (version 1)",
        ),
        ({"FAKE_TENSORRT_VERSION": "10.12.0.36"}, "TensorRT 10.12.0.36 is too old; 10.13 or later is needed"),
        ({"FAKE_TENSORRT_FAIL": "parse"}, "building the plan failed: No importer registered for op"),
        ({"FAKE_TENSORRT_FAIL": "build"}, "building the plan failed: Invalid Engine"),
        ({"FAKE_TENSORRT_FAIL": "load"}, "the new plan does not load: loading sm_86.plan"),
        ({"FAKE_TENSORRT_FAIL": "drop"}, "the plan holds no layer of the plugin HarmonicSource"),
        ({"FAKE_TENSORRT_FAIL": "compare"}, "AUDIO is 3 times as far from that of ONNX Runtime as allowed"),
    ],
)
def test_a_failure_is_one_line_and_changes_nothing(
    root: Path, build: Build, settings: dict[str, str], message: str
) -> None:
    folder = root / "synthesizer" / "1"
    (folder / "sm_86.plan").write_text("former")
    before = contents(folder)
    done = build("--model", "synthesizer", **settings)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("autovoice: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert contents(folder) == before


def test_command_names_what_this_machine_lacks(
    root: Path,
    some_library: Path,
    gpu: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("AUTOVOICE_PLUGINS", raising=False)
    library = ("--plugins", str(some_library))

    def message(*arguments: str) -> str:
        assert run(["build", "--engine", "tensorrt", "--repository", str(root), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    assert "configs/tensorrt.pbtxt; those that have: content_encoder, " in message("--model", "trim_output")
    assert "name the library in $AUTOVOICE_PLUGINS" in message()
    assert "is no plugin library and no folder with one" in message("--plugins", str(tmp_path))
    if not importlib.util.find_spec("tensorrt"):
        assert "TensorRT's Python package is not installed here" in message(*library)
    gpu("NVIDIA A10, 8.6\\nTesla T4, 7.5\\n")
    assert "several kinds of GPU are here, NVIDIA A10 (8.6), Tesla T4 (7.5)" in message(*library)
    gpu("")
    assert "nvidia-smi shows no GPU" in message(*library)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no NVIDIA GPU can be seen here" in message(*library)


class TestServing:
    """What `autovoice serve --config-name tensorrt` looks at before it starts a server."""

    @pytest.fixture
    def served(self, root: Path) -> ModelRepository:
        for name in ("pitch_extractor", "content_encoder"):
            folder = root / name / "1"
            (folder / "sm_86.plan").write_bytes(b"a plan")
            manifest = PlanManifest(
                model=name,
                onnx_sha256=sha256(folder / "model.onnx"),
                plan_sha256=sha256(folder / "sm_86.plan"),
                precision="fp32",
                tensorrt="11.1.0.106",
                cuda="13.3",
                plugins={"PitchYin": "1"} if name == "pitch_extractor" else {},
                plugin_library_sha256="",
                gpu=A10,
                hardware_compatibility="none",
                profiles=serving.profile_texts(plan_config.read_plan_config(root / name)),
            )
            (folder / "sm_86.plan.json").write_text(manifest.dumps())
        for path in root.glob("*/configs"):
            if path.parent.name not in ("pitch_extractor", "content_encoder"):
                shutil.rmtree(path)
        return ModelRepository(root)

    def test_names_the_library_where_a_plan_needs_it(
        self,
        served: ModelRepository,
        gpu: object,
        some_library: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("AUTOVOICE_PLUGINS", raising=False)
        assert plan_arguments(served, None) == []
        assert plan_arguments(served, "other") == []
        with pytest.raises(ConfigurationError, match=r"\$AUTOVOICE_PLUGINS"):
            plan_arguments(served, "tensorrt")
        for value in (some_library, some_library.parent):
            monkeypatch.setenv("AUTOVOICE_PLUGINS", str(value))
            assert plan_arguments(served, "tensorrt") == [f"--backend-config=tensorrt,plugins={some_library}"]
        shutil.rmtree(served.path / "pitch_extractor" / "configs")
        assert plan_arguments(served, "tensorrt") == []

    @pytest.mark.parametrize(
        ("harm", "message"),
        [
            (lambda folder: (folder / "sm_86.plan").unlink(), "has no plan for NVIDIA A10"),
            (
                lambda folder: (folder / "sm_86.plan").write_bytes(b"another"),
                "is not the plan of its manifest",
            ),
            (lambda folder: (folder / "sm_86.plan.json").unlink(), r"sm_86\.plan\.json is missing"),
            (lambda folder: (folder / "sm_86.plan.json").write_text("{}"), "is no manifest of a plan"),
            (
                lambda folder: (folder / "model.onnx").write_bytes(b"retrained"),
                r"was built from another model\.onnx; run `autovoice build --engine tensorrt`",
            ),
            (
                lambda folder: change_manifest(folder, profiles=("short: A=1:1:1",)),
                "was built with other optimisation profiles",
            ),
            (
                lambda folder: change_manifest(folder, gpu=T4),
                r"was built on Tesla T4 \(compute capability 7.5\), not for NVIDIA A10 \(8.6\)",
            ),
            (
                lambda folder: change_manifest(folder, tensorrt="10.13.3.9"),
                "was built by TensorRT 10.13.3.9, and the one here is 11.1.0",
            ),
        ],
    )
    def test_refuses_what_would_not_load(
        self,
        served: ModelRepository,
        gpu: object,
        monkeypatch: pytest.MonkeyPatch,
        harm: Callable[[Path], object],
        message: str,
    ) -> None:
        monkeypatch.setattr(serving, "runtime_version", lambda: "11.1.0")
        harm(served.path / "pitch_extractor" / "1")
        with pytest.raises(RepositoryError, match=message):
            plan_arguments(served, "tensorrt")

    def test_unknown_gpu_is_named(self, served: ModelRepository, gpu: Callable[[str], None]) -> None:
        gpu("Tesla K80, 3.7\\n")
        with pytest.raises(
            RepositoryError, match=r"Tesla K80 has compute capability 3\.7; the plugins know 7\.5"
        ):
            plan_arguments(served, "tensorrt")

    def test_every_gpu_of_the_machine_is_looked_at(
        self, served: ModelRepository, gpu: Callable[[str], None]
    ) -> None:
        gpu("NVIDIA A10, 8.6\\nTesla T4, 7.5\\n")
        with pytest.raises(RepositoryError, match="no plan for Tesla T4"):
            plan_arguments(served, "tensorrt")


def test_overridden_instances_reach_plans_too(repository: ModelRepository, tmp_path: Path) -> None:
    view = tmp_path / "view"
    write_view(repository, view, instances=3, threads=2)
    for name in models_for_plans(repository):
        message, twin = plan_config.read_plan_config(view / name), read_config(view / name / "config.pbtxt")
        assert [group.count for group in message.instance_group] == [3]
        assert [group.count for group in twin.instance_group] == [3]
        assert "intra_op_thread_count" not in message.parameters
        assert twin.parameters["intra_op_thread_count"].string_value == "2"
    check_plan_configs(ModelRepository(view))


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "sm_86.plan.json"
    path.write_text(replace(PlanManifest.load(path), **changes).dumps())


def test_manifest_survives_the_file(tmp_path: Path) -> None:
    manifest = PlanManifest(
        "m", "a", "b", "fp16", "11.1", "13", {"X": "1"}, "c", A10, "none", ("p",), {"Y": 0.5}
    )
    path = tmp_path / "manifest.json"
    path.write_text(manifest.dumps())
    assert PlanManifest.load(path) == manifest


def test_interrupted_publication_is_noticed(
    root: Path, repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "content_encoder" / "1"
    manifest = PlanManifest("content_encoder", "", "", "fp32", "11.1", "13", {}, "", A10, "none", ())
    config = plan_config.read_plan_config(root / "content_encoder")
    for number in (1, 2):
        plan = b"plan %d" % number
        described = replace(
            manifest,
            onnx_sha256=sha256(folder / "model.onnx"),
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            profiles=serving.profile_texts(config),
        )
        if number == 1:
            publish(plan, folder / "sm_86.plan", described)
            check_plan(repository, "content_encoder", config, A10, None)
            continue
        with monkeypatch.context() as patch:
            patch.setattr(PlanManifest, "dumps", lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                publish(plan, folder / "sm_86.plan", described)
    with pytest.raises(RepositoryError, match="is not the plan of its manifest"):
        check_plan(repository, "content_encoder", config, A10, None)
    assert not list(folder.glob("*.partial*"))


def test_custom_ops_reach_the_parser_bare(root: Path) -> None:
    model = load_model(root / "synthesizer" / "1" / "model.onnx")
    bare = without_functions(model)
    assert [item.name for item in model.functions] == ["HarmonicSource", "SpectralSynth"]
    assert not bare.functions
    named = {node.op_type: node.name for node in bare.graph.node if node.domain == "autovoice"}
    assert all(op in name for op, name in named.items())
    assert set(named) == set(plugin_versions(bare)) == {"HarmonicSource", "SpectralSynth"}
    # Without a plugin nothing can stand for them: ONNX Runtime, too, refuses.
    with pytest.raises(ParityError, match="ONNX Runtime does not take the model"):
        session_run(bare.SerializeToString())


def test_node_that_names_no_plugin_is_refused(root: Path) -> None:
    model = load_model(root / "pitch_extractor" / "1" / "model.onnx")
    (node,) = [node for node in model.graph.node if node.domain]
    (attribute,) = [item for item in node.attribute if item.name == "plugin_namespace"]
    node.attribute.remove(attribute)
    with pytest.raises(
        PlanError, match="a PitchYin node has plugin_namespace None where b'autovoice' belongs"
    ):
        plugin_versions(model)


def test_unreadable_model_is_named(root: Path, repository: ModelRepository) -> None:
    path = root / "pitch_extractor" / "1" / "model.onnx"
    path.write_bytes(b"\xff\xff nothing")
    with pytest.raises(RepositoryError, match=r"model\.onnx cannot be read as ONNX"):
        plan_jobs(repository)


def test_plugin_layers_are_recognised() -> None:
    require_plugins(['{"Name": "PitchYin_3", "LayerType": "PluginV3"}', "Kernel"], ["PitchYin"])
    with pytest.raises(PlanError, match="holds no layer of the plugin SpectralSynth; its layers: Kernel"):
        require_plugins(["Kernel"], ["SpectralSynth"])
