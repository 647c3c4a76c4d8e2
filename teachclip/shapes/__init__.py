"""The synthetic Shapes dataset: scenes, captions, rendering, presets, pretraining, ground truth."""
