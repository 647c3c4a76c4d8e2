"""Which videos and captions there are: splits, file lookup, held-out validation, overlaps."""
