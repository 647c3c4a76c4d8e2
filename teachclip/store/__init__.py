"""Arrays and files on disk that are computed once, with a record of what they were computed from."""
