"""How long `datagen --help` takes: python -m benchmarks.startup [--rounds 20]. Aim: under 0.3 s."""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.cells import write_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    command = [str(Path(sys.executable).parent / "datagen"), "--help"]
    times: list[float] = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    found = {"median_s": statistics.median(times[1:]), "slowest_s": max(times[1:]), "rounds": rounds}
    write_results("startup", found)
    print(f"datagen --help: median {found['median_s']:.2f} s, slowest {found['slowest_s']:.2f} s of {rounds}")


if __name__ == "__main__":
    main()
