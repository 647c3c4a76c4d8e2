"""One system of fair comparison: study file, plan, jobs, tables, report."""
