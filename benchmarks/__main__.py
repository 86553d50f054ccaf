"""`python -m benchmarks` lists the workloads; `python -m benchmarks NAME … [--size N]` runs them.

A workload is a module here with `SIZE`, its usual size, and `run(report, *, size)`.
"""

import argparse
import importlib
import pkgutil
import statistics
import time
from collections.abc import Callable, Mapping

import benchmarks


class Report:
    """What a workload prints."""

    def __call__(self, name: str, value: float, unit: str) -> None:
        self.say(f"  {name:<48} {value:>12.3f} {unit}")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def compare(
        self, title: str, calls: Mapping[str, Callable[[], object]], *, rounds: int = 20, each: int = 10
    ) -> None:
        """Time every call, taking turns, and print medians with their ratio to the first one's."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()  # the first one compiles, connects, reads pages
        for _ in range(rounds):
            for name, call in calls.items():
                for _ in range(each):
                    began = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - began)
        self.say(title)
        medians = {name: statistics.median(measured) for name, measured in times.items()}
        first = next(iter(medians.values()))
        for name, median in medians.items():
            self.say(f"  {name:<48} {median * 1e6:>9.0f} us {median / first:>8.2f} x")


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    workloads = {name: module for name, module in modules.items() if hasattr(module, "run")}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure workloads.")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *workloads], help="which ones")
    parser.add_argument("--size", type=int, help="how large; the usual size when left out")
    arguments = parser.parse_args()
    if not arguments.names:
        for name, workload in workloads.items():
            first_line = (workload.__doc__ or "").partition("\n")[0]
            print(f"{name:<12} {first_line} (size {workload.SIZE:,})")
    for name in arguments.names:
        print(f"{name}: {workloads[name].__doc__}".rstrip())
        workloads[name].run(Report(), size=arguments.size or workloads[name].SIZE)


if __name__ == "__main__":
    main()
