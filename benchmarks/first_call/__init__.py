"""The first call of every library: what ``benchmarks/first_call.py`` is made of."""
