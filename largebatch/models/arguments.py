"""Which arguments a recipe may hand on to torchvision's and timm's builders: those that shape a network, and no others.

A recipe runs no code and opens no files but those that it names with keys of its own. Builders of other projects take
anything, and what they do with it changes with their versions: a path that is unpickled, a cache that is filled,
weights that are fetched. So an argument is let through only if its name is one of those below, which in every version
from the stated bounds on go to the network's own ``__init__``, and its value is a number, a truth value or a list of
such; a plain word only where the network chooses a layer or a way to pool by it.
"""

from __future__ import annotations

import re
from typing import Any

from largebatch.errors import UserError, suggestion

_SHAPES = """
attn_drop_rate attention_dropout aux_logits avg_down base_width bias bn_size bottle_ratio cardinality channels
class_token conv_bias conv_mlp depth depth_mult depths dims distilled drop_block_rate drop_path_rate drop_rate
dropout dropout_aux dynamic_img_size embed_dim embed_dims expand_ratio fc_norm final_norm fix_init growth_rate
groups head_bias head_dim head_hidden_size head_init_scale head_norm_first heads image_size img_size init_values
init_weights input_3x3 kernel_size kernel_sizes key_dim layer_scale layer_scale_init_value layers ls_init_value
memory_efficient mlp_bias mlp_ratio mlp_ratios no_embed_class norm_eps num_features num_heads num_init_features
output_stride patch_drop_rate patch_norm patch_size pos_drop_rate pre_norm proj_bias proj_drop_rate qk_norm qkv_bias
reg_tokens replace_stride_with_dilation representation_size se_ratio sr_ratios stem_chs stem_size stem_width
stochastic_depth_prob strict_img_size transform_input use_abs_pos use_grn use_rel_pos_bias use_rope
use_shared_rel_pos_bias v2 width width_factor width_mult width_per_group window_size window_sizes zero_init_last
zero_init_residual
"""
_WORDS = "act_layer global_pool norm_layer pad_type pool_type pos_embed stem_type weight_init"
SHAPES, WORDS = frozenset(_SHAPES.split()), frozenset(_WORDS.split())
WORD = re.compile(r"[A-Za-z0-9_]{0,40}")


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Refuse what is not known to be harmless to the builder of ``name``."""
    for key, value in arguments.items():
        if key == "pretrained":
            raise UserError(
                "model.pretrained: nothing is downloaded, and training starts from fresh weights unless model.weights "
                "names others that are at hand: a safetensors file, or {pretrained: NAME}"
            )
        if key not in SHAPES | WORDS:
            raise UserError(
                f"model.{key} is not among the arguments that {name} is given: only such as shape the network and "
                f"nothing else{suggestion(key, sorted(SHAPES | WORDS))}"
            )
        word = key in WORDS and isinstance(value, str) and WORD.fullmatch(value)
        if not (word or is_numbers(value)):
            valid = "a number, true, false or a list of such" + (", or a plain word" if key in WORDS else "")
            raise UserError(f"model.{key} = {str(value)[:60]!r} should be {valid}, for {name} is given nothing else")


def check_truth(key: str, value: Any, wanted: bool) -> None:
    """True is no number, though Python takes it for 1, and 1 is not true."""
    if wanted and not isinstance(value, bool):
        raise UserError(f"model.{key} = {str(value)[:60]} should be true or false")
    if not wanted and any(isinstance(one, bool) for one in (value if isinstance(value, list) else [value])):
        raise UserError(f"model.{key} = {str(value)[:60]} should be a number; true, yes and on are none")


def is_numbers(value: Any) -> bool:
    """A number, a truth value, nothing, or a list of such."""
    return (
        all(map(is_numbers, value)) if isinstance(value, (list, tuple)) else isinstance(value, (int, float, type(None)))
    )
