"""The dataset check: what `teachclip prepare` does."""
