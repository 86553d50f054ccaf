"""`python -m benchmarks` lists the workloads; `python -m benchmarks NAME … [--size N]` runs them.

A workload is a module of this package with `SIZE`, its default size, and `run(report, *, size)`.
"""

import argparse
import importlib
import pkgutil

import benchmarks


def report(name: str, value: float, unit: str) -> None:
    """Print one figure of a workload."""
    print(f"  {name:<60} {value:>12.3f} {unit}", flush=True)


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    workloads = {name: module for name, module in modules.items() if hasattr(module, "run")}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure workloads.")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *workloads], help="the workloads to run")
    parser.add_argument("--size", type=int, help="the size, instead of each workload's own")
    arguments = parser.parse_args()
    if not arguments.names:
        for name, workload in workloads.items():
            first_line = (workload.__doc__ or "").partition("\n")[0]
            print(f"{name:<12} {first_line} (size {workload.SIZE:,})")
    for name in arguments.names:
        print(f"{name}: {workloads[name].__doc__}".rstrip())
        workloads[name].run(report, size=arguments.size or workloads[name].SIZE)


if __name__ == "__main__":
    main()
