"""Search in one's own videos: an index of folders that stays up to date, its vectors in an engine, and queries."""
