"""All metrics keep to the names that dashboards rely on."""

from bus.metrics import FRONTEND_REQUESTS, MALFORMED_MESSAGES, REGISTRY, ROUTER_TOKENS, render


def test_every_name_has_our_prefix_and_a_base_unit() -> None:
    for metric in REGISTRY.collect():
        assert metric.name.startswith("busway_")
        assert metric.documentation.endswith(".")
        assert not metric.name.endswith(("_ms", "_milliseconds", "_kb", "_mb", "_us"))
        if metric.type == "histogram":
            assert metric.name.endswith(("_seconds", "_bytes", "_tokens"))


def test_what_is_counted_is_rendered() -> None:
    MALFORMED_MESSAGES.labels("out").inc(0)
    assert b'busway_malformed_messages_total{family="out"}' in render()


def test_a_tally_is_rendered_as_a_counter() -> None:
    before = ROUTER_TOKENS.counts["cached"]
    ROUTER_TOKENS.counts["cached"] += 3
    assert f'busway_router_prompt_tokens_total{{kind="cached"}} {float(before + 3)}'.encode() in render()


def test_a_tally_of_pairs_is_rendered_with_both_labels() -> None:
    before = FRONTEND_REQUESTS.counts["ask", "200"]
    FRONTEND_REQUESTS.counts["ask", "200"] += 2
    shown = f'busway_frontend_requests_total{{endpoint="ask",status="200"}} {float(before + 2)}'
    assert shown.encode() in render()
