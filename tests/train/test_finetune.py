"""Finetunes on tiny models: the encoder learns layer by layer, questions reach the queries, LoRA leaves no trace."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import blip2rt
from blip2rt.cli import main as cli
from blip2rt.errors import Blip2rtError
from blip2rt.image import to_pixels
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.llm import LlmConfig
from blip2rt.modeling.vision import layer_numbers
from blip2rt_export.cli import main as export
from blip2rt_export.convert import main as convert
from blip2rt_train import stage1, stage2
from blip2rt_train.recipe import parse
from tests.seeds import new_seed
from tests.train.arguments import options, sizes, without

from ..tiny import blip2 as tiny_blip2
from ..tiny.lavis import state_of
from ..tiny.llm_configs import HIDDEN
from ..tiny.training import LLM_WORDS, NANO_STAGE2, WORDS, bert_folder, caption_table, llm_folder, tiny_settings
from .processes import FIVE_STEPS, assert_same_training, train_together
from .runs import assert_equal, build, interrupt_and_resume, weights

pytestmark = pytest.mark.long(90, "finetuned, exported and run: what is trained arrives in the bundle")

STEPS = sizes(
    "steps=4 warmup=1 batch_size=4 save_every=2 log_every=1 min_lr=0 workers=0 texts_per_image=2 eval_every=4"
)
STEPS |= {"precision": "fp32", "lr": 1e-3, "projection_lr": 1e-3}
ROOT = Path(__file__).parents[2]
TRAINED = ["--train_vision", "--no-cache_features"]
FLOAT = "vision=fp32,qformer=fp32,llm=fp32"


def question_table(folder: Path) -> Path:
    """Captions, and questions with answers, for the images of `caption_table`."""
    lines = (folder / "table.tsv").read_text().splitlines()
    rows = ["image\tcaption\tprompt", *(f"{line}\t" for line in lines[1:])]
    rows += [f"{i}.jpg\t{word}\twhat is {word}?" for i in range(8) for word in ("red", "blue")]
    table = folder / "questions.tsv"
    table.write_text("\n".join(rows) + "\n")
    return table


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP-2 in Hugging Face's format, generative and retrieving, a BERT of its Q-Former's width, and data."""
    folder = tmp_path_factory.mktemp("finetune")
    torch.manual_seed(new_seed())
    caption_table(folder)
    question_table(folder)
    bert_folder(folder / "bert")
    for name in ("opt", "t5"):
        tiny_blip2.generative(folder / name, tiny_blip2.TEXT_CONFIGS[name]())
    tiny_blip2.retrieval(folder / "itm")
    llm_folder(folder / "wide")  # of another width
    return folder


def data(parts: Path) -> list[str]:
    table, images = parts / "table.tsv", parts / "images"
    return options(train_table=table, dev_table=table, images=images, features=parts / "features", **STEPS)


def command(parts: Path, start: str | Path, out: Path, *more: str, **fields: Any) -> list[str]:
    """The arguments of a finetune of `start`, a folder of `parts` or any path."""
    return [*data(parts), *options(start=parts / start, out=out), *more, *options(**fields)]


def finetune(parts: Path, out: Path, start: str, *more: str) -> Path:
    assert stage2.main(command(parts, start, out, *more)) == 0
    return out


def pixels_of(images: list[Any], config: Any) -> torch.Tensor:
    from blip2rt_export.describe import image_spec

    return torch.from_numpy(to_pixels(images, image_spec(config.vision)))


def llm_of(parts: Path, start: str, *more: str) -> LlmConfig:
    """The config of the LLM that a training from `start` has."""
    arguments = command(parts, start, parts / "none", *more)
    found = stage2.starting_point(parse(stage2.Stage2Settings, arguments, "")).config.llm
    assert found is not None
    return found


def test_another_llm_has_its_own_token_ids(parts: Path, tmp_path: Path) -> None:
    """Prompts are kept, whether from the command line or the checkpoint."""
    wide = str(shutil.copytree(parts / "wide", tmp_path / "wide"))
    said = tmp_path / "wide" / "config.json"
    said.write_text(json.dumps({**json.loads(said.read_text()), "eos_token_id": LLM_WORDS.index("dog")}))
    own, before = llm_of(parts, "opt", "--llm_source", wide, "--caption_prompt", "a photo"), llm_of(parts, "opt")
    assert own.source == wide and own.end_ids == (LLM_WORDS.index("dog"),) != before.end_ids
    assert own.empty_prompt_ids != before.empty_prompt_ids and own.image_token_id is None
    assert (own.caption_prompt, own.ask_prompt) == ("a photo", before.ask_prompt)
    t5 = llm_of(parts, "opt", "--llm_source", str(parts / "t5"))
    assert t5.add_special_tokens and t5.overrides == {"dense_act_fn": "gelu"} and t5.end_ids == (1,)
    assert "dense_act_fn" not in llm_of(parts, "t5", "--llm_source", wide).overrides
    assert llm_of(parts, "opt", "--llm_source", before.source) == before, "its own LLM changes nothing"


def test_each_layer_learns_at_its_rate(parts: Path) -> None:
    arguments = command(parts, "opt", parts / "rates", *TRAINED, layer_decay=0.5, projection_lr=7e-3)
    trainer = build("stage2", arguments).trainer
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    rates = {names[id(p)]: group["peak"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for share, learned in {
        16: ("class_embedding", "patch_embedding.weight"),
        8: ("layers.0.qkv.bias",),
        4: ("layers.1.fc1.weight",),
        2: ("layers.2.norm2.weight",),
    }.items():
        for name in learned:
            assert rates[f"vision.body.{name}"] == pytest.approx(1e-3 / share), name
    assert rates["qformer.query_tokens"] == rates["vision_norm.weight"] == 1e-3
    assert rates["projection.weight"] == 7e-3
    vision = [n for n, p in trainer.model.vision.named_parameters()]
    assert {f"vision.{name}" for name in vision} <= rates.keys(), "all of it learns"
    decay = {names[id(p)]: g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert decay["vision.body.layers.0.qkv.bias"] == 0 and decay["vision.body.layers.0.qkv.weight"] > 0


def test_trained_encoder_is_saved_and_exported(parts: Path, tmp_path: Path) -> None:
    """Hugging Face's folder -> caption finetune -> export -> runtime, without the start's encoder."""
    shutil.copytree(parts / "opt", tmp_path / "start")
    arguments = command(
        parts, tmp_path / "start", tmp_path / "run", *TRAINED, caption_prompt="a photo of", layer_decay="0.9"
    )
    assert stage2.main(arguments) == 0
    state = weights(tmp_path / "run")
    assert {"vision.body.class_embedding", "vision.body.layers.2.fc2.weight"} <= state.keys()
    assert not any(name.startswith("llm.") for name in state)
    for file in (tmp_path / "start").glob("*.safetensors"):  # the encoder's weights are no longer needed
        from safetensors.torch import save_file

        kept = {
            n: t for n, t in load_file(file).items() if not n.startswith(("vision_model.encoder", "vision_model.emb"))
        }
        save_file(kept, file, metadata={"format": "pt"})
    model = Checkpoint(tmp_path / "run").load()
    body = model.vision.body.state_dict()
    assert all(
        torch.equal(body[n.removeprefix("vision.body.")], t) for n, t in state.items() if n.startswith("vision.")
    )
    images = tiny_blip2.photographs(2, np.random.default_rng(new_seed()))
    assert export(["--ckpt", str(tmp_path / "run"), "--out", str(tmp_path / "bundle"), "--precision", FLOAT]) == 0
    bundle = blip2rt.load(tmp_path / "bundle", threads=1)
    assert bundle.bundle.manifest.prompts["caption"] == "a photo of"
    with torch.no_grad():
        seen = model.vision_features(pixels_of(images, model.config))
        want = model.prefix_embeds(model.query_output(seen))
    assert np.abs(bundle.vision_features(images) - seen.numpy()).max() < 1e-4
    got = bundle.pipeline.prefix_embeds(bundle.pipeline.prepare_each(images), ["", ""])
    assert np.abs(got - want.numpy()).max() < 1e-4
    assert all(isinstance(text, str) for text in bundle.caption(images, num_beams=1, max_new_tokens=5))


def test_prompt_is_not_learned(parts: Path) -> None:
    arguments = command(parts, "opt", parts / "prompt", "--caption_prompt", "a photo of")
    stage = build("stage2", arguments)
    _, [micro] = next(iter(stage.batches()))
    tokenizer = stage.texts.tokenizer
    said = tokenizer.convert_ids_to_tokens(micro.texts.target.tolist())
    assert "photo" not in said and said.count("</s>") == sum(len(group) for group in micro.images.groups)
    words = [word for group in micro.images.groups for s in group for word in s.text.split() if word in WORDS]
    assert [word for word in said if word != "</s>"] == words
    first = tokenizer.convert_ids_to_tokens(micro.texts.token_ids[0, :4].tolist())
    assert first == ["<s>", "a", "photo", "of"], "laid out as Blip2Processor does"


@pytest.mark.parametrize("source", ["timm:test_efficientnet", "hf"])
def test_timm_and_hugging_face_encoders_train(parts: Path, tmp_path: Path, source: str) -> None:
    """Parameters without an effect on the features stay frozen; a resumed run is equal."""
    settings = tiny_settings(tmp_path)
    llm_folder(tmp_path / "llm")
    if source == "hf":
        from transformers import CLIPVisionConfig, CLIPVisionModel

        size = sizes("hidden_size=24 intermediate_size=40 num_hidden_layers=2 num_attention_heads=2")
        config = CLIPVisionConfig(**size, image_size=64, patch_size=32)
        CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
        settings += options(vision_source=f"hf:{tmp_path / 'clip'}", vision_weights="")
    settings += [
        *NANO_STAGE2,
        *options(workers=0, llm_source=tmp_path / "llm", end="<|end|>", layer_decay=0.8),
        *TRAINED,
    ]
    assert stage2.main([*settings, "--out", str(tmp_path / "whole")]) == 0
    state = weights(tmp_path / "whole")
    run = interrupt_and_resume("stage2", settings, tmp_path / "again")
    assert run.trainer.model.vision is not None and not run.trainer.model.vision.training
    frozen = [n for n, p in run.trainer.model.vision.named_parameters() if not p.requires_grad]
    assert all("post_layernorm" in name for name in frozen) and bool(frozen) == (source == "hf")
    assert_equal(weights(tmp_path / "again"), state)
    model = Checkpoint(tmp_path / "whole").load()
    for name, values in model.vision.state_dict().items():
        assert torch.equal(values, state[f"vision.{name}"]), name
    rates = layer_numbers(run.trainer.model.vision)
    assert min(rates.values()) == 0 and max(rates.values()) >= 2


@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_vqa_reads_the_question_twice(parts: Path, tmp_path: Path, llm: str) -> None:
    table = ["--train_table", str(parts / "questions.tsv"), "--dev_table", str(parts / "questions.tsv")]
    vqa = [*TRAINED, *table, "--question_to_qformer", *options(qformer_init=parts / "bert")]
    vqa += options(ask_prompt="Question: {} Answer:")
    arguments = [*data(parts), "--start", str(parts / llm), *vqa]
    stage = build("stage2", [*arguments, "--out", str(tmp_path / "look")])
    _, [micro] = next(iter(stage.batches()))
    texts = [sample for group in micro.images.groups for sample in group]
    assert micro.questions.image.tolist() == [i for i, group in enumerate(micro.images.groups) for _ in group]
    read = stage.questions.tokenizer.batch_decode(micro.questions.token_ids, skip_special_tokens=True)
    spoken = [sample.prompt.replace("?", "").replace(" ", "") for sample in texts]  # BERT has no ? here
    assert [text.replace(" ", "") for text in read] == spoken
    with torch.no_grad():  # the question changes the loss
        loss = stage.loss(micro)["loss"]
        asked = replace(micro.questions, token_ids=micro.questions.token_ids.roll(1, 1))
        changed = stage.loss(replace(micro, questions=asked))["loss"]
    assert (loss - changed).abs() > 1e-6
    bert = load_file(parts / "bert" / "model.safetensors")
    started = stage.model.qformer.layers[0].text_ffn.inner.weight
    assert torch.equal(started, bert["encoder.layer.0.intermediate.dense.weight"]), "the text branch is BERT's"
    hf = Checkpoint(parts / llm).load(vision=False, llm=False).qformer
    assert torch.equal(stage.model.qformer.layers[0].query_ffn.inner.weight, hf.layers[0].query_ffn.inner.weight)

    run = finetune(parts, tmp_path / "run", llm, *vqa)
    assert stage2.main([*arguments, "--out", str(run), "--steps", "5"]) == 0, "it resumes"
    assert Checkpoint(run).config.question_input, "tests/export/checkpoints/test_instructblip.py exports such"


def test_lora_is_merged_on_loading_and_converting(parts: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = ["--lora_rank", "3", "--lora_alpha", "12", "--lora_lr", "0.03", *TRAINED]
    run = finetune(parts, tmp_path / "run", "opt", *lora)
    state = weights(run)
    adapters = {name for name in state if name.startswith("llm.")}
    assert len(adapters) == 2 * 2 * 6 and all(".lora_" in name for name in adapters)
    arguments = command(parts, "opt", run, *lora)
    trained = build("stage2", arguments).model.eval()  # with peft's layers
    merged = Checkpoint(run).load()
    assert not [m for m in merged.modules() if "lora" in type(m).__module__]
    plain = Checkpoint(parts / "opt").load()
    embeds = torch.randn(2, 7, HIDDEN)
    with torch.no_grad():
        want, got, before = (m.llm(inputs_embeds=embeds).logits for m in (trained, merged, plain))
    assert (got - want).abs().max() < 1e-4
    assert (got - before).abs().max() > 1e-2, "the adapters have learned nothing: this tests nothing"
    assert convert([str(run), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    with torch.no_grad():
        assert (Checkpoint(tmp_path / "hf").load().llm(inputs_embeds=embeds).logits - got).abs().max() < 1e-5


def test_lora_resumes(parts: Path, tmp_path: Path, error_of: Any) -> None:
    pytest.importorskip("peft")
    run = finetune(parts, tmp_path / "run", "opt", "--lora_rank", "2", "--lora_layers", "q_proj", "v_proj")
    more = [*data(parts), "--start", str(run)]
    model = build("stage2", [*more, "--out", str(tmp_path / "more")]).model
    state = weights(run)
    assert_equal(model.trained_state(), state)
    assert sum(".lora_A" in name for name in state) == 4
    assert "lora_rank 2" in error_of(stage2.main, [*more, "--out", tmp_path / "other", "--lora_rank", "3"])


def test_retrieval_finetune_from_hugging_face(parts: Path, tmp_path: Path) -> None:
    fields = without(data(parts), "--projection_lr", "--texts_per_image")
    arguments = [*fields, *options(start=parts / "itm", out=tmp_path / "run", layer_decay=0.9, head_lr=1e-3), *TRAINED]
    assert stage1.main(arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"itc", "itm", "itg"} <= lines[0].keys() and any("dev_t2i_r@1" in line for line in lines)
    before, state = Checkpoint(parts / "itm").load(), weights(tmp_path / "run")
    assert not torch.equal(state["vision.body.layers.0.fc1.weight"], before.vision.body.layers[0].fc1.weight)


def test_larger_image_interpolates_positions(parts: Path, tmp_path: Path) -> None:
    run = finetune(parts, tmp_path / "small", "opt", *TRAINED, "--steps", "1", "--save_every", "1")
    for start in (parts / "opt", run):
        out = tmp_path / f"large-{start.name}"
        large = ["--vision_size", "42", "--steps", "1", "--save_every", "1"]
        assert stage2.main([*data(parts), "--start", str(start), "--out", str(out), *TRAINED, *large]) == 0
        assert weights(out)["vision.body.position_embedding"].shape[1] == 1 + 6 * 6
        assert Checkpoint(out).config.vision.height == 42


@pytest.mark.parametrize("size", [96, 32])
def test_other_grid_interpolates_learned_positions(tmp_path: Path, size: int) -> None:
    settings = tiny_settings(tmp_path)
    llm_folder(tmp_path / "llm")
    settings += [*NANO_STAGE2, *options(workers=0, llm_source=tmp_path / "llm", end="<|end|>", lr=1e-2)]
    assert stage2.main([*settings, "--out", str(tmp_path / "run")]) == 0
    at = settings.index("--vision_size")
    other = [*settings[:at], *settings[at + 6 :], "--vision_size", str(size), "--start", str(tmp_path / "run")]
    model = build("stage2", [*other, "--out", str(tmp_path / "larger")]).trainer.model
    before, after = weights(tmp_path / "run")["vision_positions"], model.vision_positions.detach()
    assert before.abs().mean() > 1e-3 and after.shape == (1, (size // 32) ** 2, 256)
    middle = after.shape[1] // 2  # of the 2 x 2 grid that was learned it sees all evenly
    torch.testing.assert_close(after[0, middle], before[0].mean(0))


def test_gradient_checkpointing_of_the_encoder_changes_nothing(parts: Path, tmp_path: Path) -> None:
    runs = [
        finetune(parts, tmp_path / name, "opt", *TRAINED, *more)
        for name, more in (("plain", []), ("recompute", ["--recompute"]))
    ]
    plain, again = (weights(run) for run in runs)
    for name in plain:
        torch.testing.assert_close(plain[name], again[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--train_vision"], ["train_vision", "--no-cache-features"]),
        (["--layer_decay", "0.9"], ["layer_decay 0.9", "--train-vision"]),
        (["--layer_decay", "2", *TRAINED], ["layer_decay is 2.0", "0 to 1"]),
        (["--queries", "9"], ["queries is 9", "has 5"]),
        (["--lora_rank", "2", "--lora_layers", "c_attn"], ["c_attn", "q_proj"]),
        (["--llm_source", "{wide}"], ["does not fit", "projection.weight"]),
        (["--question_to_qformer"], ["question_to_qformer", "stage1", "qformer_init"]),
        (["--start", "{itm}"], ["stage 1", "stage1"]),
    ],
)
def test_wrong_finetunes_are_one_line(
    parts: Path, tmp_path: Path, error_of: Any, more: list[str], words: list[str]
) -> None:
    given = [text.format(itm=parts / "itm", wide=parts / "wide") for text in more]
    error = error_of(stage2.main, command(parts, "opt", tmp_path / "out", *given))
    assert all(word in error for word in words), error


@pytest.mark.parametrize("recipe", ["captions", "vqa", "retrieval"])
def test_recipe_finetunes_a_hugging_face_checkpoint(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    """The commands of the README: dry run, finetune, export, use."""
    photos = tmp_path / "photos"
    shutil.copytree(parts / "images", photos)
    for image in photos.iterdir():
        image.with_suffix(".txt").write_text("a dog runs\nthe cat sits in the snow\n")
    table = [photos] if recipe != "vqa" else [parts / "questions.tsv", "--images", parts / "images"]
    start = parts / ("itm" if recipe == "retrieval" else "opt")
    if recipe == "captions":
        start = shutil.copytree(start, tmp_path / "plain", ignore=shutil.ignore_patterns("*processor*"))
    module = stage1 if recipe == "retrieval" else stage2
    fields = options(steps=2, warmup=1, batch_size=4, views=2, out=tmp_path / "run", features=tmp_path / "features")
    given = options(recipe=ROOT / "recipes" / "finetune" / f"{recipe}.yaml", start=start, precision="fp32")
    arguments = [*given, "--train_table", *map(str, table), *fields]
    assert module.main([*arguments, "--dry-run"]) == 0
    output, notes = capsys.readouterr()
    assert "peak learning rates" in output and "8 images" in output
    assert ("plain has no image processor: BLIP-2's own mean" in notes) == (recipe == "captions"), notes
    assert module.main(arguments) == 0
    bundle = tmp_path / "bundle"
    assert export(["--ckpt", str(tmp_path / "run"), "--out", str(bundle), "--no-verify"]) == 0
    capsys.readouterr()
    image = str(photos / "0.jpg")
    asks = {"captions": ["caption", image], "vqa": ["ask", image, "is it?"], "retrieval": ["match", image, "a dog"]}
    assert cli([*asks[recipe], "--model", str(bundle)]) == 0
    assert capsys.readouterr().out.strip() or recipe != "retrieval"


@pytest.mark.parametrize("module", ["blip2rt_train.stage1", "blip2rt_train.stage2"])
def test_two_processes_train_the_encoder_like_one(parts: Path, tmp_path: Path, module: str) -> None:
    """Stage 1 sends gradients to the encoder of the process that has the negative. LoRA learns beside it in stage 2, in
    an OPT without ReLU: where rounding makes a unit's sign, the gradient jumps."""
    pytest.importorskip("peft")
    retrieves = module == "blip2rt_train.stage1"
    start = parts / "itm" if retrieves else tmp_path / "smooth"
    if not retrieves:
        config = tiny_blip2.TEXT_CONFIGS["opt"]()
        config.activation_function = "gelu"
        tiny_blip2.generative(start, config)
    fields = {name: value for name, value in STEPS.items() if not retrieves or name[:4] not in ("proj", "text")}
    lora = [] if retrieves else ["--lora_rank", "2"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"start: {start}\nlayer_decay: 0.9\n")
    given = options(train_table=parts / "table.tsv", images=parts / "images", features=tmp_path / "features", **fields)
    arguments = [*given, *FIVE_STEPS, *TRAINED, *lora, "--recipe", str(recipe)]
    main = stage1.main if retrieves else stage2.main
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    train_together(module, [*arguments, "--out", str(tmp_path / "two")], tmp_path)
    assert_same_training(tmp_path / "one", tmp_path / "two")
    if retrieves:  # the encoder gets gradients of wrong images in other micro-batches
        assert main([*arguments, "--accumulate", "4", "--out", str(tmp_path / "four")]) == 0
        assert_same_training(tmp_path / "one", tmp_path / "four")


@pytest.mark.parametrize("lavis", [False, True])
def test_stage1_accepts_any_checkpoint_format(parts: Path, tmp_path: Path, lavis: bool) -> None:
    """Hugging Face's folder with its encoder, and LAVIS' file with the frozen encoder beside it."""
    from transformers import Blip2ForImageTextRetrieval

    theirs = Blip2ForImageTextRetrieval.from_pretrained(parts / "itm")
    given = {"stage1": parts / "itm", "llm_source": parts / "wide", "end": "<|end|>"}
    if lavis:
        state = state_of(theirs, "") | {"temp": torch.tensor([0.07])}
        words, width = theirs.embeddings.word_embeddings.weight.shape
        shapes = {"bias": (words,), "transform.dense.weight": (width, width)}
        vectors = ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")
        for name, shape in (shapes | {f"transform.{name}": (width,) for name in vectors}).items():
            state[f"Qformer.cls.predictions.{name}"] = torch.randn(shape)
        frozen = {name: state.pop(name) for name in list(state) if name.startswith("visual_encoder.")}
        torch.save({"model": state}, tmp_path / "pretrained.pth")
        torch.save(frozen, tmp_path / "eva.pth")
        given |= {"stage1": tmp_path / "pretrained.pth", "vision_weights": tmp_path / "eva.pth"}
        given["qformer_init"] = parts / "bert"
    arguments = [*data(parts), *options(**given), "--no-prepend-bos", "--out", str(tmp_path / "out")]
    settings = parse(stage2.Stage2Settings, arguments, "")
    point = stage2.starting_point(settings)
    config, model = point.config, stage2.build_model(settings, point)
    assert torch.equal(model.qformer.query_tokens, theirs.query_tokens)
    assert torch.equal(model.vision_norm.weight, theirs.vision_model.post_layernorm.weight)
    assert not config.learned_positions and config.qformer.queries == theirs.query_tokens.shape[1]
    assert config.vision.weights == str(given.get("vision_weights", parts / "itm")) and config.vision.vit is not None
    assert (config.qformer.query_dropout, config.qformer.attention_dropout) == (0.1, 0.1), "as it was trained there"
    named = parse(stage2.Stage2Settings, [*arguments, "--query-dropout", "0", "--queries", "77"], "")
    with pytest.raises(Blip2rtError, match="queries is 77"):
        stage2.starting_point(named)
