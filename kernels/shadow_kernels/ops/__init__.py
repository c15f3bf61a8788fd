"""One folder per operator: schema and checks, oracle, vectorised fallback, Triton kernels, launch heuristic."""
