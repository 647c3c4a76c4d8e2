"""Data: catalogues of videos and captions, decoding, frame stores, batches, and the embedded world."""
