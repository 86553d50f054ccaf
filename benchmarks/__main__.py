"""`python -m benchmarks` lists the workloads; `python -m benchmarks NAME … [--size N]` runs them.

A workload is a module with `run(report, *, size)`, where `report` is called with a name, a value and its unit, and with
`SIZE` if its usual size is not 100,000.
"""

import argparse
import importlib
import pkgutil

import benchmarks

USUAL_SIZE = 100_000


def report(name: str, value: float, unit: str) -> None:
    print(f"{name:<64} {value:>12,.2f} {unit}", flush=True)


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    workloads = {name: module for name, module in modules.items() if hasattr(module, "run")}
    sizes = {name: getattr(module, "SIZE", USUAL_SIZE) for name, module in workloads.items()}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure workloads, or list them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones")
    parser.add_argument("--size", type=int, help="how large; the usual size when left out")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - workloads.keys():
        parser.error(f"no workload is called {min(unknown)}: there are {', '.join(workloads)}")
    if not arguments.names:
        for name, workload in workloads.items():
            first_line = (workload.__doc__ or "").partition("\n")[0]
            print(f"{name:<12} {first_line} ({sizes[name]:,})")
    for name in arguments.names:
        print(f"{name}: {workloads[name].__doc__}".rstrip())
        workloads[name].run(report, size=arguments.size or sizes[name])


if __name__ == "__main__":
    main()
