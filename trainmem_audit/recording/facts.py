"""Facts about software, machine and numeric profile; nothing that names a person or a host (DESIGN § 2.5)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from trainmem_audit.documents.common import Scalar
from trainmem_audit.privacy import REDACTED, is_secret_value, public_text
from trainmem_audit.recording.places import Places

__all__ = ["PROFILE_VARIABLES", "environment", "numeric_profile", "rng_canary"]

PROFILE_VARIABLES: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "ATEN_CPU_CAPABILITY": r"default|avx2|avx512|zvector|vsx|sve256",
        "CUBLAS_WORKSPACE_CONFIG": r"[0-9:]{1,64}",
        "CUDA_LAUNCH_BLOCKING": r"[01]",
        "DNNL_MAX_CPU_ISA": r"[A-Za-z0-9_]{1,32}",
        "GOMP_CPU_AFFINITY": r"[0-9 ,:-]{1,256}",
        "KMP_AFFINITY": r"[a-z0-9=,]{1,128}",
        "KMP_BLOCKTIME": r"[0-9]{1,9}|infinite",
        "LANG": r"[A-Za-z0-9_.@-]{1,32}",
        "LC_ALL": r"[A-Za-z0-9_.@-]{1,32}",
        "MKL_CBWR": r"[A-Z0-9_,]{1,32}",
        "MKL_DYNAMIC": r"[A-Za-z]{1,8}",
        "MKL_ENABLE_INSTRUCTIONS": r"[A-Z0-9_]{1,32}",
        "MKL_NUM_THREADS": r"[0-9]{1,5}",
        "NUMEXPR_NUM_THREADS": r"[0-9]{1,5}",
        "NVIDIA_TF32_OVERRIDE": r"[01]",
        "OMP_DYNAMIC": r"[A-Za-z]{1,8}",
        "OMP_NUM_THREADS": r"[0-9]{1,5}(,[0-9]{1,5})*",
        "OMP_PROC_BIND": r"[A-Za-z,]{1,32}",
        "OMP_SCHEDULE": r"[A-Za-z0-9,:]{1,32}",
        "OMP_THREAD_LIMIT": r"[0-9]{1,9}",
        "ONEDNN_MAX_CPU_ISA": r"[A-Za-z0-9_]{1,32}",
        "OPENBLAS_NUM_THREADS": r"[0-9]{1,5}",
        "PYTHONHASHSEED": r"[0-9]{1,10}|random",
        "RANK": r"[0-9]{1,7}",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": r"[01]",
        "WORLD_SIZE": r"[0-9]{1,7}",
    }.items()
}
"""The environment variables that are recorded and, at replay, imposed: exact names, and the form a value must have."""


def environment(places: Places, extra: tuple[str, ...] = (), anonymous: bool = False) -> dict[str, Any]:
    """Return the members of `documents.steplog.Environment`; `extra` names further variables (`--env NAME`).

    Its value is redacted if it looks like a secret, or tells who or where.
    `PYTHONPATH` has the directories of the author's tree that modules are searched in: of that variable, and those of
    packages that are installed from the tree (`pip install -e`), as `{cwd}/…`.
    If `anonymous`, packages that come from no index are left out: their names recur in all runs of a laboratory, and in
    no others.
    """
    variables = {
        name: value
        for name, pattern in PROFILE_VARIABLES.items()
        if (value := os.environ.get(name)) is not None and pattern.fullmatch(value)
    }
    if search := places.search_entries([*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path, *_editable()]):
        variables["PYTHONPATH"] = ":".join(search)
    for name in extra:
        if (value := os.environ.get(name)) is not None:
            variables[name] = REDACTED if is_secret_value(name, value) else public_text(value)
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system() or "unknown",
        "machine": platform.machine() or "unknown",
        "cpu": _cpu_model(),
        "cpuCount": os.cpu_count() or 0,
        "packages": _packages(anonymous),
        "variables": variables,
    }


def _editable() -> list[str]:
    """Return the directories in which the finders of editable installs (setuptools) find their packages."""
    found: list[str] = []
    for name in {str(getattr(finder, "__module__", "")) for finder in sys.meta_path}:
        mapping = getattr(sys.modules.get(name), "MAPPING", None)
        if name.startswith("__editable__") and isinstance(mapping, dict):
            pairs = [(str(module), Path(str(path))) for module, path in mapping.items()]
            found += [str(path.parent) for module, path in pairs if path.stem == module]
    return found


def _packages(anonymous: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        name, version = metadata["Name"], metadata["Version"]
        own = name == "trainmem-audit"
        if version and ("+" in version or anonymous) and distribution.read_text("direct_url.json") is not None:
            if anonymous and not own:
                continue
            version = version.split("+")[0]  # the label of a local build: a commit, a date, a branch (DESIGN § 2.5)
        if name and version and len(name) <= 200 and len(version) <= 200:
            found.setdefault(name.lower().replace("_", "-"), version)
    return dict(sorted(found.items()))


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()[:200] or "unknown"
    except OSError:
        pass
    return platform.processor()[:200] or platform.machine() or "unknown"


def numeric_profile() -> dict[str, Scalar]:
    """Return the settings of torch that decide bits; torch must be imported. Reads only."""
    torch = sys.modules["torch"]
    backends = torch.backends
    profile: dict[str, Scalar] = {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "interopThreads": torch.get_num_interop_threads(),
        "cpuCapability": backends.cpu.get_cpu_capability(),
        "deterministicAlgorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministicWarnOnly": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fillUninitializedMemory": torch.utils.deterministic.fill_uninitialized_memory,
        "defaultDtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "float32MatmulPrecision": torch.get_float32_matmul_precision(),
        "mkl": backends.mkl.is_available(),
        "mkldnn": bool(backends.mkldnn.is_available() and backends.mkldnn.enabled),
        "cudnnEnabled": backends.cudnn.enabled,
        "cudnnBenchmark": backends.cudnn.benchmark,
        "cudnnDeterministic": backends.cudnn.deterministic,
    }
    if torch.cuda.is_initialized():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        profile |= {
            "cuda": str(torch.version.cuda),
            "cudaDevice": properties.name,
            "cudaMultiprocessors": properties.multi_processor_count,
            "cudaCapability": f"{properties.major}.{properties.minor}",
        }
    return profile


def rng_canary() -> dict[str, str]:
    """Return digests of fixed draws from private generators: a device that draws otherwise cannot replay.

    The draws are small enough to start no thread, and touch no global stream.
    """
    import torch

    from trainmem_audit.digests import tensor_digest

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(20_260_121)

    weights = torch.arange(1, 17, dtype=torch.float32)
    draws = {
        "torch.cpu.rand": torch.rand(257, generator=generator()),
        "torch.cpu.randn": torch.randn(257, generator=generator()),
        "torch.cpu.randn.short": torch.randn(7, generator=generator()),
        "torch.cpu.randperm": torch.randperm(257, generator=generator()),
        "torch.cpu.bernoulli": torch.empty(257).bernoulli_(0.3, generator=generator()),
        "torch.cpu.multinomial": torch.multinomial(weights, 8, generator=generator()),
    }
    return {name: tensor_digest(value).hex() for name, value in draws.items()}
