"""What the benchmarks have in common: data, machine, timed commands, results."""
