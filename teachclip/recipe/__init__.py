"""The recipe: everything a run depends on, in one YAML file with a strict schema."""
