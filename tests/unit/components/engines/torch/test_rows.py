from components.engines import Ended, Logprobs, Step, StepStats
from components.engines.torch.rows import without_rows

STATS = StepStats(0.1, 0, 0, 3, 30)


def test_rows_of_a_sequence_disappear_and_logprobs_keep_pointing_at_theirs() -> None:
    ended = [Ended(1, "stop", 3, 0)]
    step = Step([1, 2, 3], [10, 20, 30], ended, [Logprobs(0, -1.0, [], []), Logprobs(2, -3.0, [5], [-0.5])], STATS)
    assert without_rows(step, {1, 9}) == Step([2, 3], [20, 30], ended, [Logprobs(1, -3.0, [5], [-0.5])], STATS)
