"""Names of our parameters in the other formats of BLIP-2: tables with a row per tensor, ours, Hugging Face's, LAVIS'.

`*` matches a number, `weight` or `bias`; `|` separates alternatives; `-` means that a format lacks the tensor. For the
image encoder, STYLES has the names of each project: to read another one's weights, add its names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_LAYER = """
attention.query.*          attention.attention.query.*       attention.self.query.*
attention.key.*            attention.attention.key.*         attention.self.key.*
attention.value.*          attention.attention.value.*       attention.self.value.*
attention.output.*         attention.output.dense.*          attention.output.dense.*
attention.norm.*           attention.output.LayerNorm.*      attention.output.LayerNorm.*
cross_attention.query.*    crossattention.attention.query.*  crossattention.self.query.*
cross_attention.key.*      crossattention.attention.key.*    crossattention.self.key.*
cross_attention.value.*    crossattention.attention.value.*  crossattention.self.value.*
cross_attention.output.*   crossattention.output.dense.*     crossattention.output.dense.*
cross_attention.norm.*     crossattention.output.LayerNorm.* crossattention.output.LayerNorm.*
query_ffn.inner.*          intermediate_query.dense.*        intermediate_query.dense.*
query_ffn.outer.*          output_query.dense.*              output_query.dense.*
query_ffn.norm.*           output_query.LayerNorm.*          output_query.LayerNorm.*
text_ffn.inner.*           intermediate.dense.*              intermediate.dense.*
text_ffn.outer.*           output.dense.*                    output.dense.*
text_ffn.norm.*            output.LayerNorm.*                output.LayerNorm.*
"""
_EMBEDDINGS = """
word_embeddings.weight     embeddings.word_embeddings.weight|qformer.embeddings.word_embeddings.weight
position_embeddings.weight embeddings.position_embeddings.weight|qformer.embeddings.position_embeddings.weight
query_norm.*               qformer.layernorm.*|qformer.embeddings.layernorm.*
"""
_OTHERS = """
qformer.query_tokens  query_tokens                    query_tokens
vision_norm.*         vision_model.post_layernorm.*   ln_vision.*
vision_proj.*         vision_projection.*             vision_proj.*
text_proj.*           text_projection.*               text_proj.*
itm_head.*            itm_head.*                      itm_head.*
temperature           -                               temp
lm_head.bias          -                               Qformer.cls.predictions.bias
lm_head.transform.*   -                               Qformer.cls.predictions.transform.dense.*
lm_head.norm.*        -                               Qformer.cls.predictions.transform.LayerNorm.*
projection.*          language_projection.*           opt_proj.*|t5_proj.*|llm_proj.*
"""


def _rules() -> list[tuple[str, str, str]]:
    layer = "qformer.layers.*.", "qformer.encoder.layer.*.", "Qformer.bert.encoder.layer.*."
    rules = [tuple(map(str.__add__, layer, row.split())) for row in _LAYER.strip().splitlines()]
    for row in _EMBEDDINGS.strip().splitlines():
        ours, theirs = row.split()
        lavis = ours.replace("query_norm", "LayerNorm")
        rules.append((f"qformer.{ours}", theirs, f"Qformer.bert.embeddings.{lavis}"))
    rules += [tuple(row.split()) for row in _OTHERS.strip().splitlines()]
    return [(ours, theirs, lavis) for ours, theirs, lavis in rules]


_RULES = [(re.compile(re.escape(ours).replace(r"\*", r"(\w+)")), names) for ours, *names in _rules()]


def hugging_face_name(ours: str) -> str | None:
    """E.g. "projection.bias" -> "language_projection.bias"; None if Hugging Face has no such tensor.

    Alternatives are separated by |: BLIP-2's, then InstructBLIP's.
    """
    if ours.startswith("llm."):
        return f"language_model.{ours[len('llm.') :]}"
    if ours.startswith("vision.body."):
        inner = STYLES["hf"].name(ours[len("vision.body.") :])
        return None if inner is None else f"vision_model.{inner}"
    return _translated(ours, 0)


def lavis_name(ours: str) -> str | None:
    """E.g. "vision_norm.bias" -> "ln_vision.bias"; alternatives are separated by |."""
    return _translated(ours, 1)


def _translated(ours: str, column: int) -> str | None:
    for pattern, names in _RULES:
        match = pattern.fullmatch(ours)
        if match and names[column] != "-":
            return "|".join(_filled(name, match.groups()) for name in names[column].split("|"))
    return None


def _filled(name: str, parts: tuple[str, ...]) -> str:
    """The name with its stars replaced by the parts, in order."""
    for part in parts:
        name = name.replace("*", part, 1)
    return name


_OURS = "class_embedding position_embedding patch_embedding layers norm1 norm2 qkv projection fc1 fc2 pre_norm".split()


@dataclass(frozen=True)
class Style:
    """How a project names an encoder's tensors, and what it does not store."""

    prefixes: tuple[str, ...]
    names: Mapping[str, str | None]  # ours -> theirs; None: this project's encoders lack it
    clip: bool = False  # CLIP's activation, epsilon and first norm

    def name(self, ours: str) -> str | None:
        """Their name of one of our parameters, as "layers.3.fc1.bias"; None if they lack it."""
        found = re.fullmatch(r"(?:layers\.(\d+)\.)?(\w+)(?:\.(\w+))?", ours)
        theirs = None if found is None else self.names.get(found[2])
        if found is None or theirs is None:
            return None
        kind = found[3] or ""
        tensor = f"{theirs}{kind}" if theirs.endswith("_") or not kind else f"{theirs}.{kind}"
        return tensor if found[1] is None else f"{self.names['layers']}.{found[1]}.{tensor}"


def _style(prefixes: tuple[str, ...], names: str, clip: bool = False) -> Style:
    """A style from names in the order of _OURS; the last one, pre_norm, may be missing."""
    given: list[str | None] = [*names.split()]
    return Style(prefixes, dict(zip(_OURS, [*given, None][: len(_OURS)], strict=True)), clip)


STYLES = {
    "ours": _style(("vision.body.",), " ".join(_OURS)),
    "hf": _style(
        ("vision_model.",),
        "embeddings.class_embedding embeddings.position_embedding embeddings.patch_embedding encoder.layers "
        "layer_norm1 layer_norm2 self_attn.qkv self_attn.projection mlp.fc1 mlp.fc2",
    ),
    "eva": _style(
        ("visual_encoder.", ""),
        "cls_token pos_embed patch_embed.proj blocks norm1 norm2 attn.qkv attn.proj mlp.fc1 mlp.fc2",
    ),
    "clip": _style(
        ("visual_encoder.", "visual.", ""),
        "class_embedding positional_embedding conv1 transformer.resblocks ln_1 ln_2 attn.in_proj_ attn.out_proj "
        "mlp.c_fc mlp.c_proj ln_pre",
        clip=True,
    ),
}
