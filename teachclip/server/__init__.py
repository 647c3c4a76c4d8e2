"""The page and the JSON API of an index: one process, nothing but the index's own files."""
