"""Pages of allowed origins may call, others may not read."""

from frontend.auth.cors import Cors


def test_only_allowed_origins_are_named() -> None:
    cors = Cors(["https://app.example"])
    assert dict(cors.headers(b"https://app.example"))[b"access-control-allow-origin"] == b"https://app.example"
    for other in (b"", b"https://evil.example", b"https://app.example.evil", b"null", b"*"):
        assert dict(cors.headers(other)) == {b"vary": b"origin"}
        assert cors.preflight(other, ["POST"]) == ()


def test_a_preflight_tells_methods_and_headers() -> None:
    told = dict(Cors(["*"]).preflight(b"https://any", ["POST", "OPTIONS"]))
    assert told[b"access-control-allow-methods"] == b"POST, OPTIONS"
    assert b"authorization" in told[b"access-control-allow-headers"]


def test_nothing_is_allowed_by_default() -> None:
    assert not Cors([]).is_on
