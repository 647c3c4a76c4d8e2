"""Videos of a font's pictograms that move, one after another; captions call them by their Unicode names."""
