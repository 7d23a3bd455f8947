"""Facts typed by hand, in the forms that the measuring commands write."""

SMALL, LARGE = "Small batch", "Large batch"


def sharpness(full, half, rise, **changed):
    entries = [
        {"space": "full", "dimensions": None, "epsilon": 1e-3, "sharpness": full},
        {"space": "full", "dimensions": None, "epsilon": 5e-4, "sharpness": half},
        {"space": "random", "dimensions": 100, "epsilon": 1e-3, "sharpness": full / 20},
    ]
    sam = [{"rho": 0.05, "loss": 0.1, "increase": rise}]
    facts = {"kind": "sharpness", "examples": 5000, "batch_norm": "batch", "keskar": entries, "sam": sam}
    return facts | changed


def spectrum(largest, **changed):
    eigenvalues = [largest * (step - 10) / 90 for step in range(101)]
    density = {"eigenvalue": eigenvalues, "density": [10.0 ** -min(abs(step - 10), 6) for step in range(101)]}
    return {
        "kind": "spectrum", "parameters": 100_000, "examples": 5000, "density": density,
        "largest": [{"value": largest, "residual": 0.0}], "smallest": [{"value": -largest / 10, "residual": 0.0}],
        "trace": 7 * largest, "trace_std_error": 0.4, "positive_share": 0.5, "zero_share": 0.3, "negative_share": 0.2,
    } | changed  # fmt: skip


def noise(value, low, high, **changed):
    return {
        "kind": "noise", "small_batch_size": 50, "big_batch_size": 400, "batches": 20, "gradient_square": 0.02,
        "variance_trace": 40.0, "noise_scale": value, "noise_scale_low": low, "noise_scale_high": high,
    } | changed  # fmt: skip


def path(**changed):
    points = [
        {
            "alpha": alpha,
            "train_loss": 0.001 + 4 * (alpha * (alpha - 1)) ** 2,
            "train_accuracy_percent": 100 - 20 * alpha**2,
            "test_loss": 0.1,
            "test_accuracy_percent": 90 - 20 * alpha**2,
        }
        for alpha in (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
    ]  # fmt: skip
    ends = ({"title": title, "global_batch_size": size, "seed": 0} for title, size in ((SMALL, 64), (LARGE, 640)))
    return {
        "kind": "path",
        "a": next(ends),
        "b": next(ends),
        "examples": 5000,
        "line": points,
        "curve": points[2:5],
    } | changed


def target_row(label="LARS", critical=900.0, least=1e5, budget=6e5, **law):
    """Points on E = least·(1 + B/critical), lower bounds above the budget."""
    points = []
    for size in (32, 128, 512, 2048, 8192):
        examples = least * (1 + size / critical)
        seen, exact = min(examples, budget), examples <= budget
        points.append({
            "global_batch_size": size, "settings": {"lr": 0.1}, "runs": 3, "reached": 3 * exact, "examples": seen,
            "exact": exact, "examples_low": 0.9 * seen, "examples_high": 1.1 * seen if exact else None, "level": 0.75,
            "steps": seen / size, "fitted_examples": examples, "error": 0.0 if exact else None,
        })  # fmt: skip
    steps = least / critical
    fitted = {
        "least_examples": least, "least_examples_low": 0.9 * least, "least_examples_high": 1.1 * least,
        "least_steps": steps, "least_steps_low": 0.9 * steps, "least_steps_high": 1.1 * steps,
        "critical_batch_size": critical, "critical_batch_size_low": 0.8 * critical,
        "critical_batch_size_high": 1.25 * critical, "rms_error": 0.0, "largest_error": 0.0, "points": 4,
        "lower_bounds": 1, "unknown": None, "nothing_lost_until": 0.05 * critical, "perfect_until": 0.2 * critical,
        "helps_until": 4 * critical, "line": [[size, least * (1 + size / critical)] for size in (24.0, 500.0, 11000.0)],
    }  # fmt: skip
    ends = {"low": 128, "high": 512, "batch": 180.0}
    return {"label": label, "points": points, "law": fitted | law, "perfect_until": ends, "helps_until": None}


def targets(*rows, **changed):
    return {
        "kind": "targets", "name": "made-up", "title": "A study", "source": "mlcommons/logging", "target": "91.5 %",
        "unit": "images", "epoch": 60_000, "middle": "median", "command": None, "curves": list(rows or [target_row()]),
    } | changed  # fmt: skip


PLATEAU = {
    "kind": "plateau", "verdict": "valley", "sentence": "the loss stands still while the steps swing",
    "evidence": ["the median cosine is −0.62"], "advice": ["lower lr.base"],
}  # fmt: skip


def critical(**changed):
    """A checkpoint for each verdict."""
    rows = (  # verdict, k*, its bounds, what is drawn, noise scale and its interval
        ("at most", 0.5, 0.5, 0.5, 45.0, 20.0, 15.0, 30.0),
        ("critical", 1.0, 1.0, 1.0, 90.5, 100.0, 80.0, None),
        ("not decided", None, 1.0, 4.0, None, None, 300.0, None),
        ("at least", 8.0, 8.0, 8.0, 512.0, None, None, None),
    )
    points = [
        {
            "step": 100 * place, "examples_seen": 6400 * place, "global_batch_size": 64, "lr": 0.1, "verdict": verdict,
            "factor": factor, "factor_low": low, "factor_high": high,
            "critical_batch_size": factor and 64 * factor, "drawn": drawn, "excluded": 0.0123 if factor else None,
            "gained": 0.1, "noise_scale": scale, "noise_scale_low": scale_low, "noise_scale_high": scale_high,
            "branches": [
                {
                    "factor": 1.0, "global_batch_size": 64, "lr": 0.1, "steps": 8, "losses": [1.0, None],
                    "excess": None, "excess_high": None, "p": None,
                }
            ],
        }
        for place, (verdict, factor, low, high, drawn, scale, scale_low, scale_high) in enumerate(rows, start=1)
    ]  # fmt: skip
    return {
        "kind": "critical", "title": SMALL, "lr_rule": "sqrt", "window": 512, "judged_by": "last", "last_part": 128,
        "tolerance": 0.0, "orders": 5, "points": points,
    } | changed  # fmt: skip
