"""I/O. The side of Dynamo's radix tree: `<its python> -P index_peer.py WORKLOAD`, where nothing of Busway is installed.

Reads a pickled list of (slices, rounds), slices of (events, queries), and prints what was measured as JSON.
"""

import json
import pickle
import sys
import time

from dynamo.llm import RadixTree


def encode(event, number):
    kind, _, parent, blocks = event
    if kind == "removed":
        data = {"removed": {"block_hashes": blocks}}
    else:
        pairs = [{"block_hash": block, "tokens_hash": block} for block in blocks]
        data = {"stored": {"parent_hash": parent or None, "blocks": pairs}}
    return json.dumps({"event_id": number, "data": data}).encode()


def measure(slices, rounds):
    tree = RadixTree()
    encode_s = apply_s = match_s = 0.0
    matched = 0
    for events, queries in slices:
        start = time.process_time()
        encoded = [(event[1], encode(event, number)) for number, event in enumerate(events)]
        encode_s += time.process_time() - start
        start = time.process_time()
        for worker, data in encoded:
            tree.apply_event(worker, data)
        apply_s += time.process_time() - start
        start = time.process_time()
        for _ in range(rounds):
            found = [tree.find_matches(chain).scores for chain in queries]
        match_s += time.process_time() - start
        matched += sum(sum(scores.values()) for scores in found)
    return {"encode_s": encode_s, "apply_s": apply_s, "match_s": match_s, "matched": matched}


def main():
    with open(sys.argv[1], "rb") as file:
        workloads = pickle.load(file)
    sys.stdout.write(json.dumps([measure(slices, rounds) for slices, rounds in workloads]))


main()
