"""Where the server is, and the backend directory it is given."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from autovoice.errors import ConfigurationError

BACKEND = "onnxruntime"
_NATIVE_LIBRARY = f"libtriton_{BACKEND}.so"
_STUB = "triton_python_backend_stub"
_OUR_BACKEND = Path(__file__).parent / "backend" / BACKEND / "model.py"
_GIVE_BACK_BYTES = 4 << 20
_UNLOADABLE = 127  # exit code of a program whose shared libraries are missing


@dataclass(frozen=True)
class Installation:
    """A Triton server on this machine.

    Attributes:
        executable: `tritonserver`.
        backends: its own backend directory.
        libraries: folders that its programs need on `LD_LIBRARY_PATH`.
        stub: the program that runs Python backends with this interpreter; None where it lies in `backends`.
    """

    executable: Path
    backends: Path
    libraries: tuple[Path, ...] = ()
    stub: Path | None = None

    @property
    def has_native_backend(self) -> bool:
        """Whether the C++ ONNX Runtime backend came with the server."""
        return (self.backends / BACKEND / _NATIVE_LIBRARY).is_file()

    def environment(self) -> dict[str, str]:
        """Environment of the server process: its libraries, and this interpreter for Python backends."""
        environment = dict(os.environ)
        # The stub embeds Python and finds its packages through the first `python3` on PATH.
        _prepend(environment, "PATH", [Path(sys.executable).parent])
        _prepend(environment, "LD_LIBRARY_PATH", self.libraries)
        # glibc keeps what large requests needed unless it is told from which size on to give memory back.
        environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(_GIVE_BACK_BYTES))
        environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(_GIVE_BACK_BYTES))
        # A chunk of a stream reads all weights once: on huge pages a fifth of its time is saved.
        environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        return environment


def _prepend(environment: dict[str, str], name: str, folders: tuple[Path, ...] | list[Path]) -> None:
    present = environment.get(name)
    environment[name] = os.pathsep.join([*map(str, folders), *([present] if present else [])])


def find_installation() -> Installation:
    """The server on PATH, as in NVIDIA's images, else the one in the package nvidia-pytriton.

    Raises:
        ConfigurationError: when there is neither, or no Python backend for this interpreter.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        executable = Path(on_path).resolve()
        return Installation(executable, executable.parents[1] / "backends")
    package = importlib.util.find_spec("pytriton")
    if package is None or package.origin is None:
        raise ConfigurationError(
            "no Triton server found: run inside an image that has tritonserver on its PATH, or "
            "pip install 'autovoice[server]'"
        )
    folder = Path(package.origin).parent
    bundle = folder / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = bundle / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        present = sorted(path.name for path in (bundle / "python_backend_stubs").glob("*"))
        raise ConfigurationError(
            f"nvidia-pytriton has no Python backend for Python {version}, only for {', '.join(present)}; "
            "use one of those"
        )
    libraries = (*_libpython_folders(), folder.parent / "nvidia_pytriton.libs")
    installation = Installation(bundle / "bin" / "tritonserver", bundle / "backends", libraries, stub)
    _check_stub(installation, stub, version)
    return installation


def _libpython_folders() -> tuple[Path, ...]:
    configured = sysconfig.get_config_var("LIBDIR")
    architecture = sysconfig.get_config_var("MULTIARCH")
    candidates = [Path(sys.base_prefix) / "lib"]
    if configured:
        candidates += [Path(configured), Path(configured) / (architecture or "")]
    name = sysconfig.get_config_var("INSTSONAME") or ""
    return tuple(dict.fromkeys(folder for folder in candidates if name and (folder / name).exists()))


def _check_stub(installation: Installation, stub: Path, version: str) -> None:
    """Start the stub without arguments: it only prints its usage, unless the loader cannot start it."""
    done = subprocess.run(
        [stub], env=installation.environment(), capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode == _UNLOADABLE:
        raise ConfigurationError(
            f"Triton's Python backend cannot start ({done.stderr.strip()}); install the shared library of "
            f"Python {version} (Debian and Ubuntu: apt-get install libpython{version})"
        )


def backend_directory(installation: Installation, cache: Path | None = None) -> Path:
    """The backend directory to start the server with.

    That is the server's own where it has the native ONNX Runtime backend; otherwise a folder in the cache,
    with copies of its backends and ours beside them. Its name says what it was made from, so it is made once.

    Args:
        installation: the server.
        cache: where to put it; None for `$XDG_CACHE_HOME/autovoice`, `~/.cache/autovoice`.

    Raises:
        ConfigurationError: when the folder cannot be written.
    """
    if installation.has_native_backend:
        return installation.backends
    sources = _sources(installation)
    root = (cache or platformdirs.user_cache_path("autovoice")).absolute()
    target = root / f"triton-backends-{_digest(sources)}"
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".backends-", dir=root))
        try:
            for name, source in sources.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # Copies: Triton refuses a backend library that a link leads out of its folder for.
                shutil.copy2(source, path)
            partial.chmod(0o755)
            partial.rename(target)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not (isinstance(error, OSError) and target.is_dir()):  # else another process was faster
                raise
    except OSError as error:
        raise ConfigurationError(
            f"the backend directory {target} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a "
            "folder that can"
        ) from error
    return target


def _sources(installation: Installation) -> dict[str, Path]:
    """Files of the backend directory by their relative names."""
    sources = {
        str(path.relative_to(installation.backends)): path
        for path in sorted(installation.backends.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    if installation.stub is not None:
        sources[f"python/{_STUB}"] = installation.stub
    if not any(name.startswith("python/") and name.endswith(".so") for name in sources):
        raise ConfigurationError(
            f"{installation.backends} has no backend for ONNX Runtime or Python; use a full Triton image"
        )
    sources[f"{BACKEND}/model.py"] = _OUR_BACKEND
    return sources


def _digest(sources: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, source in sources.items():
        status = source.stat()
        digest.update(f"{name}\0{source}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]
