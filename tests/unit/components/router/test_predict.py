"""What was just sent somewhere is expected there, for a while."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from components.router.predict import Predictions

CHAIN = array("Q", range(1000, 1064))


def test_a_chain_is_expected_at_once_and_forgotten_in_time() -> None:
    predictions = Predictions(10.0)
    predictions.add("w-3", CHAIN, 0.0)
    assert predictions.match(CHAIN, 0.0) == {"w-3": 64}
    assert predictions.match(array("Q", [*CHAIN[:20], 5, 6]), 9.9) == {"w-3": 20}
    assert predictions.match(CHAIN, 15.1) == {}
    assert len(predictions) == 0


def test_each_worker_has_its_own_depth() -> None:
    predictions = Predictions(10.0)
    predictions.add("w-0", CHAIN, 0.0)
    predictions.add("w-70", CHAIN[:10], 6.0)
    assert predictions.match(CHAIN, 6.0) == {"w-0": 64, "w-70": 10}
    assert predictions.match(array("Q", [1, 2, 3]), 6.0) == {}
    assert predictions.match(array("Q"), 6.0) == {}


def test_a_worker_that_left_is_forgotten() -> None:
    predictions = Predictions(10.0)
    predictions.add("w-0", CHAIN, 0.0)
    predictions.add("w-1", CHAIN, 6.0)
    predictions.remove_worker("w-0")
    assert predictions.match(CHAIN, 6.0) == {"w-1": 64}


def test_of_chains_that_nobody_is_expected_to_hold_nothing_is_left() -> None:
    predictions = Predictions(10.0)
    fork = array("Q", [*CHAIN[:20], 5, 6])
    predictions.add("w-0", CHAIN, 0.0)
    predictions.add("w-1", fork, 0.0)
    predictions.remove_worker("w-0")
    assert predictions.match(CHAIN, 0.0) == {"w-1": 20}
    predictions.add("w-2", CHAIN, 0.0)
    assert predictions.match(CHAIN, 0.0) == {"w-1": 20, "w-2": 64}
    predictions.remove_worker("w-1")
    predictions.remove_worker("w-2")
    assert len(predictions) == 0
    assert predictions.match(fork, 0.0) == {}


def test_a_chain_of_equal_hashes_does_no_harm() -> None:
    """Gateways and other routers say what the hashes are."""
    predictions = Predictions(10.0)
    for length in (3, 5, 1):
        predictions.add("w-0", array("Q", [7] * length), 0.0)
    assert len(predictions) < 10
    assert predictions.match(array("Q", [7] * 4), 0.0)["w-0"] >= 1


def test_memory_is_bounded() -> None:
    predictions = Predictions(10.0, max_hashes=1000)
    for number in range(500):
        predictions.add(f"w-{number % 8}", array("Q", range(number * 100, number * 100 + 100)), 0.0)
    predictions.add("w-0", array("Q", range(10**6, 10**6 + 5000)), 0.0)
    assert len(predictions) <= 1500
    assert predictions.match(array("Q", range(10**6, 10**6 + 100)), 0.0) == {"w-0": 100}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 40)), max_size=12), st.integers(0, 3))
def test_depths_are_those_of_a_plain_search(added: list[tuple[int, int, int]], branch: int) -> None:
    """Chains share their first ten blocks and then go one of four ways."""
    chains = [array("Q", [*range(10), *range(100 * way, 100 * way + 30)]) for way in range(1, 5)]
    predictions = Predictions(10.0)
    for worker, way, length in added:
        predictions.add(f"w-{worker}", chains[way][:length], 0.0)
    found: dict[str, int] = {}
    for worker, way, length in added:
        common = min(length, 40 if way == branch else 10)
        if common:
            found[f"w-{worker}"] = max(found.get(f"w-{worker}", 0), common)
    assert predictions.match(chains[branch], 0.0) == found
