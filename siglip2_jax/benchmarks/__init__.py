"""Published benchmarks: tasks, suites and reports."""
