"""Programs that the benchmarks start, for timings inside one Python process. Each prints one line of JSON."""
