"""Damaged inputs, by seed: files of every format that the product reads are damaged, and each command is judged by one rule.

    python -m tests.faults --cases 200 --seed 7

A command gives the result of the undamaged input, or ends in one line that names the file. docs/reliability.md has the rule.
"""
