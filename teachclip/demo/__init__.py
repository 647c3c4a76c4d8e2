"""The demo: the whole path on the Shapes dataset, with a report."""
