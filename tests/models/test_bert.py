"""bert: the same numbers as transformers' with the same weights, forward and backward; its forms and refusals."""

from __future__ import annotations

import pytest
import torch

from largebatch import models
from largebatch.errors import UserError
from largebatch.models.bert import SHAPES, Bert
from largebatch.models.transformers_names import config_of, renamed

VOCABULARY, LENGTH = 60, 24


def built(**arguments) -> Bert:
    keys = {"layers": 2, "width": 32, "heads": 4, "positions": 40, "dropout": 0.0} | arguments
    model = models.build("bert", VOCABULARY, (LENGTH,), 3, keys)
    assert isinstance(model, Bert)
    with torch.no_grad():  # no bias is 0 and no norm 1, or a lost one would not be seen
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def batch(pairs=False, count=3, length=LENGTH):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(5, VOCABULARY, (count, length), generator=generator)
    positions = torch.stack([torch.randperm(length, generator=generator)[:5].sort().values for _ in range(count)])
    if not pairs:
        return tokens, positions, None, None
    segments = (torch.arange(length) > length // 3).long().repeat(count, 1)
    attended = torch.arange(length) < torch.tensor([[length], [length - 7], [length // 2]])
    return tokens, positions, segments, attended


@pytest.mark.parametrize("pairs", [False, True])
def test_it_is_transformers_bert(pairs):
    transformers = pytest.importorskip("transformers")
    ours = built(next_sentence=pairs)
    kind = transformers.BertForPreTraining if pairs else transformers.BertForMaskedLM
    theirs = kind(transformers.BertConfig(**config_of(ours)))
    missing, unexpected = theirs.load_state_dict(renamed(ours.state_dict()), strict=False)
    assert set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}, "which are tied"
    assert unexpected == []
    theirs.tie_weights()
    tokens, positions, segments, attended = batch(pairs)
    found = ours(tokens, positions, segments, attended)
    mask = None if attended is None else attended.long()
    wanted = theirs(input_ids=tokens, token_type_ids=segments, attention_mask=mask)
    logits, follows = found if pairs else (found, None)
    whole = wanted.prediction_logits if pairs else wanted.logits
    at = positions[:, :, None].expand(-1, -1, VOCABULARY)
    looked_at = torch.ones_like(positions, dtype=torch.bool)
    if attended is not None:
        looked_at = attended.gather(1, positions)
    torch.testing.assert_close(logits[looked_at], whole.gather(1, at)[looked_at], atol=1e-5, rtol=1e-5)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4)) * looked_at[:, :, None]
    loss, their_loss = (logits * weights).sum(), (whole.gather(1, at) * weights).sum()
    if follows is not None:
        torch.testing.assert_close(follows, wanted.seq_relationship_logits, atol=1e-5, rtol=1e-5)
        loss, their_loss = loss + follows[:, 0].sum(), their_loss + wanted.seq_relationship_logits[:, 0].sum()
    loss.backward()
    their_loss.backward()
    of_theirs = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    ours_renamed = renamed({name: parameter.grad for name, parameter in ours.named_parameters()})
    assert len(ours_renamed) == len(list(ours.parameters()))
    for name, gradient in ours_renamed.items():
        torch.testing.assert_close(gradient, of_theirs[name], atol=2e-4, rtol=2e-4, msg=name)


def test_places_are_gathered_before_the_head():
    model = built().double()
    tokens, positions, *_ = batch()
    few = model(tokens, positions)
    whole = model(tokens, torch.arange(LENGTH).expand(3, -1))
    torch.testing.assert_close(few, whole.gather(1, positions[:, :, None].expand(-1, -1, VOCABULARY)))
    assert few.shape == (3, 5, VOCABULARY)


def test_what_is_filled_up_changes_nothing():
    model = built().double()
    tokens, positions, _, _ = batch()
    attended = torch.arange(LENGTH) < torch.tensor([[20]] * 3)
    positions = positions.clamp(max=19)
    short = model(tokens[:, :20], positions)
    torch.testing.assert_close(model(tokens, positions, None, attended), short)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_activations_that_are_computed_again_give_the_same_gradients(norm):
    gradients = []
    for again in (False, True):
        model = built(norm=norm, dropout=0.2, checkpoint_activations=again).double().train()
        torch.manual_seed(0)
        model(*batch()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def dumb_pre_norm(model: Bert, tokens: torch.Tensor) -> torch.Tensor:
    """Izsak's order of things, one head after another."""
    norm = lambda layer, x: torch.nn.functional.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, 1e-12)  # noqa: E731
    linear = lambda layer, x: x @ layer.weight.T + layer.bias  # noqa: E731
    h = model.tokens.weight[tokens] + model.places.weight[: len(tokens)] + model.segments.weight[0]
    for layer in model.layers:
        x, parts = norm(layer.attention_norm, h), []
        q, k, v = (linear(part, x) for part in (layer.attention.query, layer.attention.key, layer.attention.value))
        for head in range(4):
            part = slice(8 * head, 8 * (head + 1))
            parts.append(torch.softmax(q[:, part] @ k[:, part].T / 8**0.5, dim=1) @ v[:, part])
        h = h + linear(layer.attention.output, torch.cat(parts, dim=1))
        x = linear(layer.inner, norm(layer.norm, h))
        h = h + linear(layer.outer, x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    h = norm(model.norm, h)
    x = linear(model.transform, h)
    return norm(model.transform_norm, x * 0.5 * (1 + torch.erf(x / 2**0.5))) @ model.tokens.weight.T + model.bias


def test_pre_norm_is_the_dumb_statement():
    model = built(norm="pre").double()
    tokens, *_ = batch(count=1)
    found = model(tokens, torch.arange(LENGTH)[None])[0]
    torch.testing.assert_close(found, dumb_pre_norm(model, tokens[0]), rtol=1e-12, atol=1e-12)


def test_it_is_one_graph():
    model = built()
    arguments = batch()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), model(*arguments))


@pytest.mark.parametrize(("size", "millions"), [("tiny", 4.4), ("mini", 11.2), ("base", 109.5), ("large", 335.2)])
def test_sizes_are_the_published(size, millions):
    """Parameters with the vocabulary of 30,522, as Turc et al. and Devlin et al. count them: to what heads have."""
    with torch.device("meta"):
        model = models.build("bert", 30522, (128,), 0, {"size": size})
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 / millions - 1) < 0.02
    assert set(SHAPES) == {"tiny", "mini", "small", "medium", "base", "large"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": "bas"}, "size = bas is not known; did you mean base"),
        ({"layers": None}, "it needs a size"),
        ({"heads": 5}, "width = 32 is no multiple of heads = 5"),
        ({"layers": 0}, "layers = 0 should be a whole number of at least 1"),
        ({"norm": "middle"}, "norm = middle is not known"),
        ({"dropout": 1.0}, "dropout = 1.0 should be at least 0 and below 1"),
        ({"depth": 2}, "unknown key model.depth for bert"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(UserError, match=words):
        built(**arguments)


def test_images_and_long_sequences_are_refused():
    with pytest.raises(UserError, match="it takes sequences of tokens"):
        models.build("bert", 10, (3, 32, 32), 0, {"size": "tiny"})
    with pytest.raises(
        UserError, match=r"data\.length = 41 is above the model's positions; at most 40, or model\.positions=41"
    ):
        built()(*batch(length=41))


def test_logits_leave_autocast_in_full():
    model = built(next_sentence=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits, follows = model(*batch(pairs=True))
    assert logits.dtype == follows.dtype == torch.float32
    assert {part.dtype for part in model.double()(*batch(pairs=True))} == {torch.float64}
