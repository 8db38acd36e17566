from components.engines.torch.randomness import uniforms


def test_a_number_depends_on_seed_and_offset_alone() -> None:
    together = uniforms([1, 2, 3, 2], [10, 20, 30, 20])
    assert together[1] == together[3] == uniforms([2], [20])[0]
    assert len({*uniforms([0] * 100, range(100)), *uniforms(range(1, 101), [0] * 100)}) == 200


def test_numbers_are_golden() -> None:
    """Workers of different versions must agree: a change here changes the tokens of moved requests."""
    drawn = uniforms([0, 0, 1, 2**63 - 1], [0, 1, 0, 2**31])
    assert [int(number * 2**24) for number in drawn] == [10946269, 570621, 6177195, 7552709]


def test_numbers_are_spread_evenly() -> None:
    for drawn in (uniforms([5] * 20_000, range(20_000)), uniforms(range(20_000), [5] * 20_000)):
        assert drawn.min() >= 0.0
        assert drawn.max() < 1.0
        for cut in (0.1, 0.5, 0.9):
            assert abs((drawn < cut).mean() - cut) < 0.01
    pairs = uniforms([5] * 20_001, range(20_001))
    assert abs((pairs[:-1] * pairs[1:]).mean() - 0.25) < 0.01
