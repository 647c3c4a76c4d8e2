"""Diagnosis: where the gap between a student and its teacher comes from."""
