"""Pure. The version, on cards, in answers and in `busway --version`."""

VERSION = "0.1.0"
