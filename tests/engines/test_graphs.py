"""CUDA graphs: the same weights as without, on a device; beside one, who is replayed and what is left untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from largebatch.engines import graphs
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.train import train


class StaticPool:
    """What torch does in a capture, as far as it can be seen from outside: warm-up passes, one shape, one output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replays, self.caching, self.half = 0, None, None
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", self.capture)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
        monkeypatch.setattr(graphs, "DEVICE", "cpu")

    def capture(self, model: nn.Module, sample: tuple[Tensor], **_: object) -> None:
        self.caching, self.half = torch.is_autocast_cache_enabled(), torch.is_autocast_enabled("cpu")
        own, shape = model.forward, sample[0].shape
        for _ in range(3):
            model(torch.randn_like(sample[0])).sum().backward(inputs=list(model.parameters()))
            model.zero_grad()

        def replay(images: Tensor) -> Tensor:
            assert images.shape == shape, "a graph has one shape"
            self.replays += 1
            return own(images)

        model.forward = replay


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 5)
    )


@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_the_capture_leaves_no_trace(monkeypatch, half):
    pool, model = StaticPool(monkeypatch), network()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    generator = torch.get_rng_state()
    graphs.capture(model, ((torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)),), {}), half)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert torch.equal(torch.get_rng_state(), generator), "what dropout draws next is what it would have drawn"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert pool.caching is False, "a cast weight that is cached would be one of the capture's"
    assert pool.half is (half is not None)


def test_only_a_training_step_of_the_captured_shape_is_replayed(monkeypatch):
    pool, model = StaticPool(monkeypatch), network()
    images = torch.randn(4, 3, 8, 8)
    graphs.capture(model, ((images,), {}), None)
    model(images)
    assert pool.replays == 1
    model(images[:3])
    model(images.to(memory_format=torch.channels_last))
    with torch.no_grad():
        model(images)
    model.eval()
    model(images)
    assert pool.replays == 1
    model.train()
    model(images)
    assert pool.replays == 2


def test_a_model_that_cannot_be_captured_is_refused(monkeypatch):
    pool = StaticPool(monkeypatch)

    def refuses(model: nn.Module, sample: tuple[Tensor], **_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuses)
    wanted = r"engine.cuda_graphs = true: the model cannot be captured \(operation not permitted .* capturing\); leave"
    with pytest.raises(UserError, match=wanted):
        graphs.capture(network(), ((torch.randn(4, 3, 8, 8),), {}), None)
    assert pool.replays == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sam": {"rho": 0.1}}, "sam"),
        ({"batch__bn_batch_size": 50}, "batch.bn_batch_size"),
        ({"batch__ramp": {"at_epochs": [1], "factor": 2}}, "batch.ramp"),
        ({"batch_norm": {"statistics": "last"}}, "batch_norm.statistics = last"),
        ({"averaging": {"name": "post_local_sgd", "workers": 2}}, "averaging.name = post_local_sgd"),
        ({"data": {"name": "folder", "root": "x", "image_size": {"from": 8, "to": 16}}}, "data.image_size that grows"),
    ],
)
def test_what_does_not_go_with_graphs_is_refused(recipe, changes, named):
    run = config.load(recipe(engine={"cuda_graphs": True}, **changes))
    with pytest.raises(UserError, match=f"engine.cuda_graphs = true does not go with {named}"):
        train(run, quiet=True)


def test_several_micro_batches_are_refused(monkeypatch):
    from largebatch.engines import Ddp
    from largebatch.plan.batch import resolve

    engine = Ddp(torch.device("cuda"), "fp32", False, False, cuda_graphs=True)
    plan = resolve(dataset_size=100, global_batch_size=40, micro_batch_size=10, steps=3)
    with pytest.raises(UserError, match="needs a single micro-batch in a step, and here there are 4"):
        engine.wrap(plan)


@pytest.mark.worlds
def test_on_the_cpu_the_key_changes_nothing(recipe):
    from programs import weights_at_end

    runs = {name: config.load(recipe(name, engine={"cuda_graphs": name == "graphs"})) for name in ("plain", "graphs")}
    for run in runs.values():
        train(run, quiet=True)
    assert "CUDA graphs not here" in (runs["graphs"].directory / "plan.json").read_text()
    plain, same = (weights_at_end(run.directory) for run in runs.values())
    assert all(torch.equal(plain[key], same[key]) for key in plain)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_same_weights_as_without(recipe, precision, compile):
    from programs import weights_at_end

    model = {"name": "tiny_cnn", "channels": [16, 32]}
    found = {}
    for name in ("plain", "graphs"):
        engine = {"name": "ddp", "cuda_graphs": name == "graphs"}
        run = config.load(recipe(name, model=model, engine=engine, precision=precision, compile=compile, device="cuda"))
        assert train(run, quiet=True).status == "finished"
        found[name] = weights_at_end(run.directory)
    tolerance = 1e-4 if precision == "fp32" else 3e-2
    for key, value in found["plain"].items():
        torch.testing.assert_close(found["graphs"][key], value, rtol=tolerance, atol=tolerance)
