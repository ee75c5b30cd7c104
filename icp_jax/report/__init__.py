"""Reports of runs and sweeps as pages, figures of results, and trackers."""
