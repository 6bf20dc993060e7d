"""`fcos doctor`: what a careful person checks of a data set before a long training.

`check.check` reads, compares and counts; `terminal` and `page` show its `report.Report`.
"""
