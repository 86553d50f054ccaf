"""The library beside the bare driver, measured in one run. Ratios last longer than the figures of one machine."""
