"""Data: catalogues of videos and captions, decoding, frame stores and batches."""
