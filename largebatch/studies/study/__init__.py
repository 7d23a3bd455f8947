"""A study: steps and time to a target against the batch, for several recipes, each tuned with the same effort.

file        what STUDY.yaml says
folder      what the workers of a study share: the study as it stands, and who runs what
jobs        its runs, and which of them can be made now
work        a worker: claims a run, makes it, looks for the next
findings    what comes out, in facts, sentences and a picture
"""
