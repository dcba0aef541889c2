"""The throughput suite behind `saerl bench`: ours beside what would be used otherwise, in one run on the same cores.

A row of the table in `suite.py` names a function that returns a `Contest`: our call, the calls it is held against,
and the proof of our result in float64. No speed is reported for a result that is not proved.
"""
