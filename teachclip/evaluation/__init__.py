"""Evaluation: ranks, retrieval metrics, intervals over seeds, cost of a search."""
