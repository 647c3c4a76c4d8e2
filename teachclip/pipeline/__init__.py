"""From a recipe to a student: everything the commands do, importable."""
