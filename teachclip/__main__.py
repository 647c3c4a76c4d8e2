"""`python -m teachclip COMMAND` is `teachclip COMMAND`."""

from teachclip.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
