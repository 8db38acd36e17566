"""I/O. `python -m components.cli` is `busway`."""

from components.cli.entry import main

raise SystemExit(main())
