"""Stands in for TensorRT, which cannot be installed everywhere: just enough for Polygraphy to build with.

It runs nothing. A plan is JSON that says what the builder was told; the parser demands bare custom ops and
looks no plugin up. Names that TensorRT 11 removed are missing here, so that a use of one fails.
Settings come from the environment: FAKE_TENSORRT_VERSION, FAKE_TENSORRT_CREATORS (ops), FAKE_TENSORRT_FAIL.
"""

from __future__ import annotations

import enum
import json
import os

import onnx

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "11.1.0.106")
_CREATORS = os.environ.get("FAKE_TENSORRT_CREATORS", "PitchYin HarmonicSource SpectralSynth").split()
_FAIL = os.environ.get("FAKE_TENSORRT_FAIL", "")

HardwareCompatibilityLevel = enum.Enum(
    "HardwareCompatibilityLevel", "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY"
)
DeviceType = enum.Enum("DeviceType", "GPU DLA")
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED NONE")
LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
OnnxParserFlag = enum.IntEnum("OnnxParserFlag", "NATIVE_INSTANCENORM")
BuilderFlag = enum.IntEnum("BuilderFlag", "TF32 DIRECT_IO")
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 0})


class ILogger:
    Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def __init__(self) -> None: ...


class Logger(ILogger):
    pass


class IProgressMonitor:
    def __init__(self) -> None: ...


class Registry:
    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        return object() if (name in _CREATORS and (version, namespace) == ("1", "autovoice")) else None


def get_plugin_registry() -> Registry:
    return Registry()


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    return True


class _Type(str):
    name = "FLOAT"


class Tensor:
    is_shape_tensor = False
    dtype = _Type("float32")

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model = onnx.ModelProto()

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, index: int) -> Tensor:
        return Tensor(self.model.graph.input[index])

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    def get_output(self, index: int) -> Tensor:
        return Tensor(self.model.graph.output[index])

    num_layers = 0

    def __iter__(self):
        return iter(())


class ParserError:
    def __str__(self) -> str:
        return "No importer registered for op"


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self.network = network
        self.num_errors = 0

    def parse(self, model: bytes) -> bool:
        self.network.model.ParseFromString(model)
        functions = [item.name for item in self.network.model.functions]
        assert not functions, f"a parser that prefers functions would expand {functions}"
        self.num_errors = int(_FAIL == "parse")
        return not self.num_errors

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        self.content += other.content
        return True

    def serialize(self):
        return memoryview(self.content + b"+")


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, smallest, typical, largest) -> None:
        self.shapes[name] = [list(smallest), list(typical), list(largest)]

    def get_shape(self, name: str) -> list[list[int]]:
        return self.shapes[name]

    def __bool__(self) -> bool:
        return True


class Config:
    hardware_compatibility_level = HardwareCompatibilityLevel.NONE
    profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
    progress_monitor = None
    DLA_core = -1
    default_device_type = None

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def __init__(self) -> None:
        self.profiles: list[OptimizationProfile] = []
        self.flags = {BuilderFlag.TF32}
        self.limits: dict[str, int] = {}

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self.flags

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.limits[pool.name] = size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self.limits.get(pool.name, 0)

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(bytes(content))

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> Cache:
        return self.cache


class Builder:
    def __init__(self, logger: ILogger) -> None: ...

    def create_network(self, flags: int = 0) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        if _FAIL == "build":
            return None
        if config.progress_monitor is not None:
            config.progress_monitor.phase_start("Building", None, 2)
            assert config.progress_monitor.step_complete("Building", 0)
            config.progress_monitor.phase_finish("Building")
        layers = [
            {"Name": node.name, "LayerType": node.op_type if node.domain else "Kernel"}
            for node in network.model.graph.node
            if not (_FAIL == "drop" and node.domain)
        ]
        types = sorted({item.data_type for item in network.model.graph.initializer})
        plan = {
            "version": __version__,
            "level": config.hardware_compatibility_level.name,
            "strongly_typed": network.flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED,
            "tf32": BuilderFlag.TF32 in config.flags,
            "limits": config.limits,
            "profiles": [profile.shapes for profile in config.profiles],
            "initializer_types": types,
            "layers": layers,
        }
        return json.dumps(plan).encode()


class Inspector:
    def __init__(self, plan: dict) -> None:
        self.plan = plan

    def get_engine_information(self, layout: LayerInformationFormat) -> str:
        assert layout is LayerInformationFormat.JSON
        return json.dumps({"Layers": self.plan["layers"]})


class Engine:
    def __init__(self, plan: dict) -> None:
        self.plan = plan

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self.plan)


class Runtime:
    def __init__(self, logger: ILogger) -> None: ...

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        return None if _FAIL == "load" else Engine(json.loads(content))
