"""Would the suite notice? Bugs of one line, put into copies; each must make a test fail.

`bugs` is the list, `python -m tests.sabotage [NAME ...]` plants them one after the other, and
`test_bugs` holds that each entry still fits the source it changes.
"""
