"""Benchmarks: `python -m bench.NAME --json FILE`. Each checks that results agree before it times them."""
