"""Data sets that others thought up and this project renders to real videos, and what made data sets share."""
