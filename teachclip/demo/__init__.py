"""The demo: the whole pipeline on the Shapes dataset, with a report."""
