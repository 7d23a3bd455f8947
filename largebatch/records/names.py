"""What a run directory and a comparison hold, by name; what stands in each is told in docs/design.md."""

RECIPE = "run.yaml"
PLAN = "plan.json"
METRICS = "metrics.jsonl"
LOG = "train.log"
RESULT = "result.json"
LOGGERS = "loggers.json"
MLPERF_LOG = "mllog.txt"
DATA = "data.npz"
CHECKPOINTS = "checkpoints"
DIAGNOSTICS = "diagnostics"
TENSORBOARD = "tensorboard"

COMPARISON = "comparison.json"
SEARCH = "search"  # of a row: the runs that tried its learning rates
REPORT_PAGE = "report.html"
REPORT_TEXT = "report.md"
