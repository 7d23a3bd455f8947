"""What a trained run says of examples: evaluated on any of its splits or on other data, or asked about single images.

changes.py      the recipe of a run, with keys that another machine may change
restored.py     the model of a checkpoint, as the run itself judges it
measure.py      an evaluation with its answers, example by example
answers.py      those answers, gathered over ranks, and what is counted in them
other_data.py   a data set that the run did not have
files.py        answers in a file
show.py         tables and sentences
predict.py      images without labels
"""
