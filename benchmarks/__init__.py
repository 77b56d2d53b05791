"""Ours, plain ORM, hand-written Core and the peers on the same work, side by side.

Run ``python -m benchmarks --help``; :mod:`benchmarks.__main__` tells the whole story.
What is measured is in :mod:`benchmarks.workloads`, who is measured in
:mod:`benchmarks.contenders`, what is aimed at in :mod:`benchmarks.goals`.
"""
