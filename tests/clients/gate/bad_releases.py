"""Releases that a gate must refuse, each made from the shipped models by one change."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import helper, numpy_helper

from autovoice.releases.publishing import publish
from autovoice.releases.release import Release
from autovoice.repository.model_config import read_config

# What converts and streams in the base voice, and follows the pitch: half of the time to load all.
MODELS = (
    "content_encoder",
    "converter_stream",
    "pad_source",
    "pitch_extractor",
    "pitch_extractor_stream",
    "speaker_encoder",
    "synthesizer",
    "trim_output",
    "voice_conversion",
    "voice_conversion_stream",
)

LEAKING_STEPS = 24000


def copy_models(repository: Path, to: Path, names: Iterable[str] = MODELS) -> Path:
    """Copy models of a repository, links as files, with the configs of ONNX Runtime alone."""
    for name in names:
        shutil.copytree(repository / name, to / name, ignore=shutil.ignore_patterns("configs"))
    return to


def model_file(repository: Path, name: str) -> Path:
    return repository / name / "1" / "model.onnx"


def rewrite(repository: Path, name: str, change: Callable[[onnx.GraphProto], None]) -> None:
    """Change the graph of a model in place."""
    path = model_file(repository, name)
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)


def change_config(repository: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change the config of a model in place."""
    path = repository / name / "config.pbtxt"
    config = read_config(path)
    change(config)
    path.write_text(text_format.MessageToString(config))


def append(graph: onnx.GraphProto, output: str, nodes: Callable[[str, str], list[onnx.NodeProto]]) -> None:
    """Put nodes between what makes an output and the output.

    Args:
        graph: to change.
        output: name of the output.
        nodes: given the name of what was made and that of the output, the nodes between them.
    """
    made = f"{output}_before"
    for node in graph.node:
        node.output[:] = [made if name == output else name for name in node.output]
        node.input[:] = [made if name == output else name for name in node.input]
    graph.node.extend(nodes(made, output))


def constant(graph: onnx.GraphProto, name: str, values: Any, dtype: Any = np.float32) -> str:
    """Add an initializer; returns its name."""
    graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def truncated_file(repository: Path) -> None:
    path = model_file(repository, "content_encoder")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_models_file(repository: Path) -> None:
    shutil.copyfile(model_file(repository, "pitch_extractor"), model_file(repository, "content_encoder"))


def wrong_shape(repository: Path) -> None:
    """The file gives a column where the config, as before, says a row."""

    def column(graph: onnx.GraphProto) -> None:
        axes = constant(graph, "last_axis", [2], np.int64)
        append(
            graph, "CONVERTED_AUDIO", lambda made, out: [helper.make_node("Unsqueeze", [made, axes], [out])]
        )
        (output,) = graph.output
        output.type.tensor_type.shape.dim.add().dim_value = 1

    rewrite(repository, "trim_output", column)


def other_contract(repository: Path) -> None:
    """What clients are told about the rate is another than before."""
    change_config(repository, "voice_conversion", lambda config: _parameter(config, "sample_rate", "16000"))


def _parameter(config: Any, name: str, value: str) -> None:
    config.parameters[name].string_value = value


def nan_at_warm_up(repository: Path) -> None:
    """Zero over zero."""

    def divide(graph: onnx.GraphProto) -> None:
        nothing = constant(graph, "nothing", [0.0])
        append(
            graph,
            "CONVERTED_AUDIO",
            lambda made, out: [
                helper.make_node("Mul", [made, nothing], ["zeros"]),
                helper.make_node("Div", ["zeros", nothing], [out]),
            ],
        )

    rewrite(repository, "trim_output", divide)


def nan_on_speech(repository: Path) -> None:
    """The root of what is negative for everything louder than a tenth of full scale."""

    def root(graph: onnx.GraphProto) -> None:
        limit = constant(graph, "limit", [0.1])
        append(
            graph,
            "CONVERTED_AUDIO",
            lambda made, out: [
                helper.make_node("Abs", [made], ["size"]),
                helper.make_node("Sub", [limit, "size"], ["left"]),
                helper.make_node("Sqrt", ["left"], ["rooted"]),
                helper.make_node("Sub", ["rooted", "rooted"], ["zeros"]),
                helper.make_node("Add", [made, "zeros"], [out]),
            ],
        )

    rewrite(repository, "trim_output", root)


def silence(repository: Path) -> None:
    """Everything is 60 dB down."""

    def lower(graph: onnx.GraphProto) -> None:
        little = constant(graph, "little", [0.001])
        append(graph, "CONVERTED_AUDIO", lambda made, out: [helper.make_node("Mul", [made, little], [out])])

    rewrite(repository, "trim_output", lower)


def wrong_rate(repository: Path) -> None:
    """The audio is that of a voice at two thirds of the rate: played too fast, and silent at the end."""

    def squeeze(graph: onnx.GraphProto) -> None:
        empty = constant(graph, "empty", [])
        scales = constant(graph, "scales", [1.0, 1.0, 2 / 3])
        one, two = constant(graph, "one", [1], np.int64), constant(graph, "two", [2], np.int64)
        three = constant(graph, "three", [0, 0, 0], np.int64)

        def nodes(made: str, out: str) -> list[onnx.NodeProto]:
            return [
                helper.make_node("Unsqueeze", [made, one], ["channel"]),
                helper.make_node("Resize", ["channel", empty, scales], ["short"], mode="linear"),
                helper.make_node("Squeeze", ["short", one], ["shorter"]),
                helper.make_node("Shape", [made], ["shape"]),
                helper.make_node("Shape", ["shorter"], ["short_shape"]),
                helper.make_node("Sub", ["shape", "short_shape"], ["rest"]),
                helper.make_node("Slice", ["rest", one, two], ["tail"]),
                helper.make_node("Concat", [three, "tail"], ["pads"], axis=0),
                helper.make_node("Pad", ["shorter", "pads"], [out]),
            ]

        append(graph, "CONVERTED_AUDIO", nodes)

    rewrite(repository, "trim_output", squeeze)


def twice_as_slow(repository: Path) -> None:
    _slow_down(repository, 600)


def many_times_as_slow(repository: Path) -> None:
    _slow_down(repository, 800)


def _slow_down(repository: Path, size: int) -> None:
    """Products of large matrices, of which nothing is added to the audio."""

    def work(graph: onnx.GraphProto) -> None:
        nothing = constant(graph, "nothing", [0.0])
        ones = constant(graph, "ones", np.full((1, size), 1e-3))
        random = np.random.default_rng(0).standard_normal((size, size))
        matrix = constant(graph, "matrix", random / 100)

        def nodes(made: str, out: str) -> list[onnx.NodeProto]:
            # What depends on no input would be computed once, when the model is loaded.
            first = [
                helper.make_node("ReduceMean", [made], ["mean"], keepdims=1),
                helper.make_node("Mul", ["mean", nothing], ["zero"]),
                helper.make_node("Add", [matrix, "zero"], ["product0"]),
            ]
            products = [
                helper.make_node("MatMul", [f"product{step}", matrix], [f"product{step + 1}"])
                for step in range(8)
            ]
            last = [
                helper.make_node("MatMul", [ones, "product8"], ["row"]),
                helper.make_node("ReduceMax", ["row"], ["largest"], keepdims=0),
                helper.make_node("Mul", ["largest", nothing], ["added"]),
                helper.make_node("Add", [made, "added"], [out]),
            ]
            return first + products + last

        append(graph, "CONVERTED_AUDIO", nodes)

    rewrite(repository, "trim_output", work)


def leaking_memory(repository: Path) -> None:
    """Thousands of small steps, of whose memory ONNX Runtime keeps a plan for every length it has seen."""

    def steps(graph: onnx.GraphProto) -> None:
        first, last = constant(graph, "first", [0], np.int64), constant(graph, "last", [2**62], np.int64)
        end, start = constant(graph, "end", [-1], np.int64), constant(graph, "start", [-(2**62)], np.int64)
        axis = constant(graph, "axis", [1], np.int64)
        every, back = constant(graph, "every", [240], np.int64), constant(graph, "back", [-1], np.int64)
        nothing = constant(graph, "nothing", [0.0])

        def nodes(made: str, out: str) -> list[onnx.NodeProto]:
            few = helper.make_node("Slice", [made, first, last, axis, every], ["turned0"])
            turns = [
                helper.make_node("Slice", [f"turned{step}", end, start, axis, back], [f"turned{step + 1}"])
                for step in range(LEAKING_STEPS)
            ]
            added = [
                helper.make_node("ReduceMax", [f"turned{LEAKING_STEPS}"], ["largest"], keepdims=0),
                helper.make_node("Mul", ["largest", nothing], ["added"]),
                helper.make_node("Add", [made, "added"], [out]),
            ]
            return [few, *turns, *added]

        append(graph, "CONVERTED_AUDIO", nodes)

    rewrite(repository, "trim_output", steps)


def crash_on_load(repository: Path) -> None:
    """A warm-up of four terabytes: Triton 2.51 ends with SIGSEGV."""

    def enlarge(config: Any) -> None:
        (warm_up,) = config.model_warmup
        for name in warm_up.inputs:
            warm_up.inputs[name].dims[:] = [2**40]

    change_config(repository, "trim_output", enlarge)


def publish_changed(
    repository: Path, releases: Path, change: Callable[[Path], None] | None = None
) -> Release:
    """Publish models after a change of them."""
    if change is None:
        return publish(repository, releases)
    changed = releases.parent / f"changed-{change.__name__}"
    shutil.copytree(repository, changed)
    change(changed)
    return publish(changed, releases)
