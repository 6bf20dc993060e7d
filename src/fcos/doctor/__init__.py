"""`fcos doctor`: checks of a data set before a long training.

`check.check` runs the checks and returns a `findings.Report`; `terminal` and `page` present it.
"""
