"""The frames of a data set: stored on disk, in several views, or decoded live."""
