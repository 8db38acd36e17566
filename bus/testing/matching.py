"""Pure. Subject filters, matched as the server does."""


def matches(pattern: str, subject: str) -> bool:
    """Say whether a filter with `*` and a last `>` takes a subject."""
    filters, tokens = pattern.split("."), subject.split(".")
    for position, wanted in enumerate(filters):
        if wanted == ">":
            return len(tokens) > position
        if position >= len(tokens) or wanted not in ("*", tokens[position]):
            return False
    return len(filters) == len(tokens)


def overlaps(one: str, other: str) -> bool:
    """Say whether some subject is taken by both filters."""
    ours, theirs = one.split("."), other.split(".")
    for left, right in zip(ours, theirs, strict=False):
        if ">" in (left, right):
            return True
        if left != right and "*" not in (left, right):
            return False
    return len(ours) == len(theirs)
