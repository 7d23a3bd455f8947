"""A plan before anything is spent: which batch, how many devices, how long, what it costs.

sources, target   examples to the target against the batch: a study's, published ones, a bound, numbers
traces, memory    dry runs that are kept, and what a step needs of a device by them
pace, sent        a machine's pace for a recipe, and what it sends
legs, points      a recipe at a batch, and each batch on each number of devices
choice, devices   the fastest, the cheapest, the knee; numbers of devices
make              all of it together
lines, sure       what to type, how sure it is
shown             table and sentences

No torch, but where a trace is made.
"""
