"""How long jaxcheck takes and how much memory it needs, beside its peers.

``python -m benchmarks.peers`` (or ``import_time``, ``memory``, ``scaling``) prints a
table and writes ``benchmarks/results/<name>-<device>.json``. None of them is a test: no
time is asserted.
"""
