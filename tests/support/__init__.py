"""What the tests, the benchmarks and the demo share: load, observers, an engine, repositories."""
