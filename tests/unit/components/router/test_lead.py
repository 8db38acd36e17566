"""One router leads: the first that hears nobody, and after it the first that notices."""

from components.router.lead import JITTER_S, SILENCE_S, Lead


def test_who_hears_nobody_leads_after_a_while() -> None:
    lead = Lead("r-1", 10.0)
    lead.look(10.0 + SILENCE_S - 0.01)
    assert not lead.is_leading
    lead.look(10.0 + SILENCE_S + JITTER_S)
    assert lead.is_leading


def test_who_hears_a_leader_follows_whatever_its_id() -> None:
    lead = Lead("r-1", 0.0)
    for tick in range(50):
        lead.hear("r-9", 0.1 * tick)
        lead.look(0.1 * tick + 0.05)
    assert not lead.is_leading
    lead.look(4.9 + SILENCE_S + JITTER_S)
    assert lead.is_leading


def test_of_two_that_lead_the_smaller_id_stays() -> None:
    one, two = Lead("r-1", 0.0), Lead("r-2", 0.0)
    one.look(9.0)
    two.look(9.0)
    one.hear("r-2", 9.1)
    two.hear("r-1", 9.1)
    assert (one.is_leading, two.is_leading) == (True, False)


def test_a_router_that_stood_still_does_not_take_over_before_it_has_listened() -> None:
    lead = Lead("r-1", 0.0)
    lead.excuse_silence(60.0)
    lead.look(60.1)
    assert not lead.is_leading
