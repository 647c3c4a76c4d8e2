"""Reports: tables, charts and HTML pages."""
