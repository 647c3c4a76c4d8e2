"""The student inside other people's tools: mteb's benchmarks, LanceDB's embedding functions."""
