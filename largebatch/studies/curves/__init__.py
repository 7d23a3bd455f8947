"""Steps and examples to a target against the batch: points, the law that is fitted, what may be said of them.

measured (points, medians) -> law (the fit and its intervals), scaling (where perfect scaling ends), rules
(hyper-parameters along the curve), pairs (statements between rows); published (points of others), shown (facts,
tables). No torch.
"""
