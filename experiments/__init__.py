"""Experiments: one module a question, many methods side by side. `python -m experiments` lists them."""
