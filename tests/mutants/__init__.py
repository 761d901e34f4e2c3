"""Would the tests notice? Every operator, constant and condition of the pure parts, changed.

`python -m tests.mutants` changes one place at a time in memory, and runs the tests of that module
in a fork until one fails. The bugs of `tests.sabotage` are chosen by hand; these are all there are.
"""
