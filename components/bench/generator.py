"""I/O. The load generator as a process of its own: its CPU is its own, and nobody else's loop disturbs it.

`python -m components.bench.generator` reads LoadOptions as JSON from stdin and writes a LoadResult to stdout.
"""

import subprocess
import sys
from typing import Final

import msgspec

from bus.errors import BadConfig, Fatal
from components.bench.load import run_load
from components.bench.results import LoadOptions, LoadResult

MAX_RUN_S: Final = 3600.0
BAD_OPTIONS: Final = 2


def run_load_process(options: LoadOptions) -> LoadResult:
    """Run the load in a process of its own and wait for it; raises BadConfig for bad options, Fatal if it crashed."""
    limit_s = (options.duration_s or MAX_RUN_S) + options.timeout_s + 60
    command = [sys.executable, "-m", "components.bench.generator"]
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(options), capture_output=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise Fatal(f"load generator still running after {limit_s:.0f} s") from error
    text = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode == BAD_OPTIONS:
        raise BadConfig(text)
    if done.returncode:
        raise Fatal(f"load generator exited with {done.returncode}: {text}")
    return msgspec.json.decode(done.stdout, type=LoadResult)


def main() -> int:
    """Read options from stdin, write the result to stdout; bad options: one line on stderr, exit code BAD_OPTIONS."""
    try:
        options = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadOptions)
        result = run_load(options)
    except (BadConfig, msgspec.ValidationError, msgspec.DecodeError) as error:
        sys.stderr.write(f"{error}\n")
        return BAD_OPTIONS
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
