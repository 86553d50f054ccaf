"""`python -m benchmarks` lists the workloads; `python -m benchmarks NAME … [--size N] [--json]` runs them.

A workload is a module of this package with `SIZE`, its default size, and `run(report, *, size)`.
"""

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import benchmarks


def print_figure(name: str, value: float, unit: str) -> None:
    print(f"  {name:<60} {value:>12.3f} {unit}", flush=True)


def print_json(workload: str, size: int) -> Callable[[str, float, str], None]:
    """Return a function that prints one figure of a workload as a line of JSON."""

    def report(name: str, value: float, unit: str) -> None:
        figure = {"workload": workload, "size": size, "name": name.strip(), "value": value, "unit": unit}
        print(json.dumps(figure), flush=True)

    return report


def machine() -> dict[str, Any]:
    """Return what a figure depends on; a load above the number of cores means that other programs were measured too."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlalchemy": version("sqlalchemy"),
        "sqlite": sqlite3.sqlite_version,
    }


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    workloads = {name: module for name, module in modules.items() if hasattr(module, "run")}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure workloads.")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *workloads], help="the workloads to run")
    parser.add_argument("--size", type=int, help="the size, instead of each workload's own")
    parser.add_argument("--json", action="store_true", help="one line of JSON for the machine and for each figure")
    arguments = parser.parse_args()
    if not arguments.names:
        for name, workload in workloads.items():
            first_line = (workload.__doc__ or "").partition("\n")[0]
            print(f"{name:<24} {first_line} (size {workload.SIZE:,})")
        return
    print(json.dumps(machine()) if arguments.json else ", ".join(f"{key} {value}" for key, value in machine().items()))
    for name in arguments.names:
        size = arguments.size or workloads[name].SIZE
        if not arguments.json:
            print(f"{name}: {workloads[name].__doc__}".rstrip())
        workloads[name].run(print_json(name, size) if arguments.json else print_figure, size=size)


if __name__ == "__main__":
    main()
