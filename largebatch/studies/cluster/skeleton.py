"""A machine's file to fill in, with every key: ``plan fit --skeleton`` prints it, docs/planning_step.md shows it."""

SKELETON = """\
name: ours
devices_per_node: 8             # that `inside` connects
# devices_per_host: 4           # that one torchrun starts, where a node is several hosts, as in a rack of NVLink
# launcher: none                # where largebatch does not run; torchrun
memory: 8.5e10                  # bytes of a device that programs are offered
# reserve: 3.2e9                # bytes of it for what a dry run does not count: context, libraries, gaps
memory_bandwidth: 3.35e12       # bytes/s of a device
peaks:                          # FLOP/s of a device, dense: a pace in another precision is scaled by them
  bf16: 9.89e14                 # fp8, bf16, fp16, tf32, fp32, fp64
  fp16: 9.89e14
  tf32: 4.94e14
  fp32: 6.7e13
inside:                         # of a node; `peak` is the datasheet's, in one direction
  bandwidth: 3.2e11             # bytes/s that one device sends; unknown: 0.7 of the peak
  latency: 3.0e-6               # seconds of a hop
  peak: 4.5e11
between:                        # nodes: all network cards of one together
  bandwidth: 2.8e11
  latency: 1.0e-5
  peak: 4.0e11
# meeting: {seconds: 8.0e-3}    # that ranks of a CPU wait for one another in a step, beside what they send
workloads:                      # what a device computes; `plan fit ROWS.csv` finds them
  resnet50:                     # model, or model_size, or model_size_side; model_size_length of text
    per_example: 1.3e-4         # seconds of an example
    floor: 3.5e-3               # seconds of a micro-batch, however small
    fixed: 2.0e-4               # seconds of a step: the optimizer
    precision: fp16             # that this was measured in
    # times: {tf32: 1.8}        # per_example in another, over this one, where that was measured
    flops: 2.43e10              # of an example, forward and backward: other sizes are scaled by them
    gradient_bytes: 5.1e7       # that the devices sum in a step
    update_bytes: 7.2e8         # that the optimizer reads and writes in a step
    # data_per_example: 2.0e-4  # seconds that reading an example takes whoever feeds a device
sources: [who says so]
"""
