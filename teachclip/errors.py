"""Errors that a user can fix. Each message is one line and complete: where, what was got, what is allowed."""


class TeachclipError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""


class RecipeError(TeachclipError):
    """A recipe or an override is wrong; all problems of a recipe are in one error."""


class DataError(TeachclipError):
    """Annotations, captions or a set of videos cannot be used."""


class VideoError(DataError):
    """One video file cannot be read."""


class CheckpointError(TeachclipError):
    """A checkpoint is missing, damaged, unsafe to open or of another architecture."""


class StoreError(TeachclipError):
    """An on-disk array store is incomplete, damaged or made under other provenance."""


class BusyError(TeachclipError):
    """Another run works in a folder that only one may write to."""


class LaunchError(TeachclipError):
    """The processes were not started in a way that can train together."""


class TrainingError(TeachclipError):
    """Training cannot go on, for example because a loss is not finite."""
