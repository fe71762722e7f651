"""A report with everything in it, and how it looks: the files beside this module.

Written anew, to be looked at before they are committed, by `python -m tests.golden`.
"""
