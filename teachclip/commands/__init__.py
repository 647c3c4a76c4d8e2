"""One module per command; `tools/*.py` and the `teachclip` entry point call these."""
