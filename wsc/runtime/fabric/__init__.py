"""The fabric simulator: routers, ramps and PEs of a grid, cycle by cycle, with the values that travel."""
