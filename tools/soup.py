"""`python tools/soup.py --help` says what this does."""

import _bootstrap  # noqa: F401  (puts the project on the path)

from teachclip.cli.soup import main

if __name__ == "__main__":
    raise SystemExit(main())
