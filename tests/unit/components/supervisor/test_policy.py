"""A process that died comes back at once; one that keeps dying gets pauses, and at first start an end."""

from components.supervisor.policy import (
    LONGEST_PAUSE_S,
    QUICK_DEATHS,
    STABLE_S,
    Life,
    bury,
    choose_last_words,
    describe_exit,
    is_hopeless,
)


def test_the_first_restart_is_immediate_then_pauses_double() -> None:
    life, pauses = Life(), []
    for _ in range(10):
        life, pause_s = bury(life, lived_s=0.1)
        pauses.append(pause_s)
    assert pauses[:5] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_process_that_lived_is_restarted_at_once_whatever_came_before() -> None:
    assert bury(Life(quick_deaths=9), lived_s=STABLE_S) == (Life(), 0.0)
    assert bury(Life(quick_deaths=10**6), lived_s=1.0)[1] == LONGEST_PAUSE_S


def test_a_wrong_configuration_is_hopeless_before_the_system_was_ready_only() -> None:
    assert is_hopeless(Life(1), 2, has_been_ready=False)
    assert not is_hopeless(Life(1), 2, has_been_ready=True)
    assert not is_hopeless(Life(1), 1, has_been_ready=False)
    assert is_hopeless(Life(QUICK_DEATHS), -9, has_been_ready=False)
    assert not is_hopeless(Life(QUICK_DEATHS), -9, has_been_ready=True)


def test_exits_in_words() -> None:
    assert describe_exit(2) == "exit code 2"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-99) == "killed by signal 99"


def test_of_a_log_a_person_reads_what_tells_why() -> None:
    daily = ['{"event":"request.finished","level":"info"}'] * 20
    assert choose_last_words([*daily, "Traceback", "OSError: no", *daily]) == ["Traceback", "OSError: no"]
    assert (
        choose_last_words(['{"event":"engine.died","level":"error"}'] * 20, 12)
        == ['{"event":"engine.died","level":"error"}'] * 12
    )
    assert choose_last_words(daily) == daily[:3]
    assert choose_last_words([]) == []
