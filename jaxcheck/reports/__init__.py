"""How results are drawn: values, numbers, tables and progress.

Knows nothing of gradients, and imports nothing that is slow to import.
"""
