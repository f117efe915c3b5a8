"""How long the command line takes to start: CPU seconds of whole processes, best and median of some runs.

python tests/bench/startup.py --runs 5
"""

import argparse
import statistics
import subprocess
import sys

SCRIPTS = {
    "python -c pass": "",
    "privacy-gate --help": "from privacy_gate.cli import app; app(['--help'])",
    "privacy-gate check --help": "from privacy_gate.cli import app; app(['check', '--help'])",
    "what audit imports": "import privacy_gate.gate.steps",
    "what report imports": "import privacy_gate.reports",
}
CLOCK = "import time, sys\ntry:\n    {}\nexcept SystemExit: pass\nprint(time.process_time(), file=sys.stderr)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print("| process | best, s | median, s |")
    print("|---|---|---|")
    for name, script in SCRIPTS.items():
        command = [sys.executable, "-c", CLOCK.format(script or "pass")]
        done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(runs)]
        seconds = [float(one.stderr.split()[-1]) for one in done]
        print(f"| {name} | {min(seconds):.2f} | {statistics.median(seconds):.2f} |")


if __name__ == "__main__":
    main()
