"""Evaluation: ranks, metrics, reports."""
