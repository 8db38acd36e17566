"""Who leaves the queue first: classes, tenants by weight, deadlines."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages.inference import LatencyClass
from components.router.queue import NO_DEADLINE, Entry, FairQueue


def make_queue(**weights: float) -> FairQueue[str]:
    return FairQueue(weights, {"standard": 0.1, "batch": 0.05}, max_waiting=10_000)


def put(
    queue: FairQueue[str],
    name: str,
    *,
    tenant: str = "a",
    latency_class: LatencyClass = "standard",
    tokens: int = 1000,
    deadline: float = NO_DEADLINE,
) -> None:
    queue.put(Entry(name, tenant, latency_class, tokens, deadline, 0.0))


def take(queue: FairQueue[str]) -> Entry[str]:
    entry = queue.peek(1)[0]
    queue.remove(entry)
    queue.charge(entry.latency_class, entry.tenant, entry.tokens)
    return entry


def test_first_come_first_served_within_a_tenant_and_deadlines_before_that() -> None:
    queue = make_queue()
    for name in "abc":
        put(queue, name)
    put(queue, "late", deadline=20.0)
    put(queue, "soon", deadline=10.0)
    assert [take(queue).item for _ in range(5)] == ["soon", "late", "a", "b", "c"]
    assert len(queue) == 0
    assert queue.peek(5) == []


def test_a_lead_counts_like_an_earlier_arrival_and_never_beats_a_deadline() -> None:
    queue = make_queue()
    for name, arrived_at, lead_s, deadline in (
        ("first", 1.0, 0.0, NO_DEADLINE),
        ("long", 1.5, 0.6, NO_DEADLINE),
        ("late", 1.7, 0.6, NO_DEADLINE),
        ("due", 1.8, 0.0, 9.0),
    ):
        queue.put(Entry(name, "t", "standard", 10, deadline, arrived_at, lead_s))
    assert [take(queue).item for _ in range(4)] == ["due", "long", "first", "late"]


def test_interactive_before_standard_before_batch() -> None:
    queue = make_queue()
    for latency_class in ("batch", "standard", "interactive"):
        put(queue, latency_class, latency_class=latency_class)
    assert [entry.item for entry in queue.peek(8)] == ["interactive", "standard", "batch"]


def test_a_lower_class_gets_its_share_and_no_more() -> None:
    queue = make_queue()
    for number in range(2000):
        put(queue, str(number), latency_class="interactive")
        put(queue, str(number), latency_class="batch")
    served = Counter(take(queue).latency_class for _ in range(2000))
    assert 85 <= served["batch"] <= 105


def test_weights_decide_whatever_the_lengths() -> None:
    queue = make_queue(gold=4.0, tin=1.0)
    for number in range(4000):
        put(queue, str(number), tenant="gold", tokens=300 + number % 7 * 500)
        put(queue, str(number), tenant="tin", tokens=5000 - number % 5 * 900)
    tokens: Counter[str] = Counter()
    for _ in range(2000):
        entry = take(queue)
        tokens[entry.tenant] += entry.tokens
    assert 3.9 <= tokens["gold"] / tokens["tin"] <= 4.1


def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    queue = make_queue()
    for number in range(500):
        put(queue, str(number), tenant="busy")
    for _ in range(300):
        take(queue)
    for number in range(200):
        put(queue, str(number), tenant="back")
    served = Counter(take(queue).tenant for _ in range(100))
    assert abs(served["busy"] - served["back"]) <= 2


def test_three_queues_that_hear_each_other_share_as_one() -> None:
    """The weak tenant is at one router only, and the strong one everywhere."""
    queues = [make_queue(gold=4.0) for _ in range(3)]
    for number in range(900):
        for queue in queues:
            put(queue, str(number), tenant="gold")
        put(queues[1], str(number), tenant="tin")
    served: Counter[str] = Counter()
    for turn in range(900):
        queue = queues[turn % 3]
        entry = take(queue)
        served[entry.tenant] += 1
        for other in queues:
            if other is not queue:
                other.charge(entry.latency_class, entry.tenant, entry.tokens)
    assert 3.7 <= served["gold"] / served["tin"] <= 4.3


def test_what_is_ahead_counts_the_own_share_only() -> None:
    queue = make_queue(gold=4.0)
    for number in range(10):
        put(queue, str(number), tenant="gold")
    for number in range(100):
        put(queue, str(number), tenant="tin")
    put(queue, "first", latency_class="interactive", tokens=700)
    assert queue.tokens_ahead("standard", "gold") == 700 + 10_000 + 2500
    assert queue.tokens_ahead("standard", "tin") == 700 + 100_000 + 10_000
    assert queue.tokens_ahead("standard", "new") == 700
    assert queue.tokens_ahead("interactive", "new") == 0
    assert queue.tokens_above("standard") == 700
    assert queue.tokens_above("interactive") == 0


def test_room_is_bounded_by_class() -> None:
    queue: FairQueue[str] = FairQueue({}, {}, max_waiting=3)
    for name in "abc":
        put(queue, name)
    assert (queue.room("standard"), queue.room("batch")) == (0, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sampled_from(["interactive", "standard", "batch"]),
            st.integers(1, 100_000),
            st.sampled_from([NO_DEADLINE, 1.0, 2.0]),
        ),
        max_size=60,
    )
)
def test_everything_leaves_once_and_peek_foretells_it(entries: list[tuple[str, LatencyClass, int, float]]) -> None:
    queue = make_queue(a=4.0)
    for number, (tenant, latency_class, tokens, deadline) in enumerate(entries):
        put(queue, str(number), tenant=tenant, latency_class=latency_class, tokens=tokens, deadline=deadline)
    assert len(queue.peek(1000)) == len(queue.all()) == len(queue) == len(entries)
    names = [take(queue).item for _ in entries]
    assert sorted(names) == sorted(str(number) for number in range(len(entries)))
    assert len(queue) == 0
    assert queue.tokens_ahead("batch", "a") == 0
