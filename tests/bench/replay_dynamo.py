"""I/O. Dynamo's own offline replay of a Mooncake trace; run by the Python that Dynamo is installed in, by file name.

Arguments: trace file, number of workers. Prints one JSON object: for each router mode, what its report says.
"""

import json
import os
import sys

os.environ["DYN_LOG"] = "error"

MODES = ("round_robin", "kv_router")
ENGINE = {"engine": {"num_gpu_blocks": 16_384, "block_size": 64}}
TRACE_BLOCK_TOKENS = 512


def main() -> None:
    from dynamo._core import run_mocker_trace_replay

    trace, num_workers = sys.argv[1], int(sys.argv[2])
    reports = {}
    for mode in MODES:
        result = run_mocker_trace_replay(
            [trace], ENGINE, num_workers=num_workers, router_mode=mode, trace_block_size=TRACE_BLOCK_TOKENS
        )
        reports[mode] = {name: value for name, value in result.summary.items() if isinstance(value, int | float)}
    json.dump(reports, sys.stdout)


if __name__ == "__main__":
    main()
