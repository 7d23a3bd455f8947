"""The time of a step on a cluster: machines, what a device computes and sends, the closed form.

machine (links, paces, files of machines), workload (what a step computes and sends), step (the closed form). No torch.
"""
