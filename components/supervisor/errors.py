"""Pure. Why `busway up` does not come up."""

from bus.errors import Fatal


class CannotStart(Fatal):
    """The system cannot start, or cannot stay; `hint` is the next command to type."""

    code = "cannot_start"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint
