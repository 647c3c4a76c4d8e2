"""Pre-training of a tiny CLIP on any frames and captions."""
