"""moebench: reproducible benchmarks of sparse mixture-of-experts methods."""

__version__ = "0.1.0"
