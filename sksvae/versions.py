# SPDX-License-Identifier: BSD-3-Clause
"""What a report of a problem should say about the machine and its software."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from threadpoolctl import threadpool_info

from sksvae import __version__

_REQUIRED = ("numpy", "scipy", "scikit-learn", "torch", "joblib", "threadpoolctl")
_OPTIONAL = ("matplotlib", "pandas", "polars", "skops", "onnx", "pip")


def show_versions() -> None:
    """Print versions of Python, of this package and of what it stands on, and numbers of threads.

    Paste it into a report of a problem. Nothing in it tells who you are, but for the path of the
    Python that runs.

    See Also
    --------
    sklearn.show_versions : The same for scikit-learn, with more about how it was built.

    Examples
    --------
    >>> import sksvae
    >>> sksvae.show_versions()
    System:
            python: 3...
        executable: ...
           machine: ...
              CPUs: ...
    ...
    """
    system = {
        "python": sys.version.replace("\n", " "),
        "executable": sys.executable,
        "machine": platform.platform(),
        "CPUs": os.cpu_count(),
    }
    packages = {"sksvae": __version__} | {name: _installed(name) for name in _REQUIRED + _OPTIONAL}
    # PyTorch first: what it loads has pools of threads too.
    pytorch = _pytorch()
    for title, entries in (
        ("System", system),
        ("Packages", packages),
        ("PyTorch", pytorch),
        ("Threads of the libraries that are loaded", _thread_pools()),
    ):
        print(f"{title}:")
        width = max(map(len, entries), default=0) + 4
        for name, value in entries.items():
            print(f"{name:>{width}}: {value}")
        print()


def _installed(name: str) -> str:
    """Version of a package by its metadata, without an import that may fail."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _pytorch() -> dict[str, object]:
    """Threads and devices of PyTorch."""
    try:
        import torch
    except (ImportError, OSError) as error:  # what may be just the problem to report
        return {"not loaded": error}
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "CUDA": f"{torch.version.cuda}, {', '.join(cuda) or 'no device'}",
        "MPS": "available" if torch.backends.mps.is_available() else "no device",
    }


def _thread_pools() -> dict[str, str]:
    """Threads of each numerical library, by the start of its file's name."""
    pools: dict[str, str] = {}
    for pool in threadpool_info():
        version_ = pool["version"] or "unknown version"
        text = f"{pool['num_threads']} ({pool['internal_api']}, {version_})"
        pools[pool["prefix"]] = "; ".join(filter(None, [pools.get(pool["prefix"]), text]))
    return pools
