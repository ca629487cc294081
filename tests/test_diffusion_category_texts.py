"""Categories in a pipeline's own words: what a layer makes of them is what it makes of the same text as a prompt."""

from functools import cache

import pytest
import torch
from peft import LoraConfig

from judge.diffusion.category_texts import CategoryTexts, text_of
from judge.diffusion.layouts import attention_layers
from judge.diffusion.observer import Observer
from judge.diffusion.text_reading import embed_texts, unread_parts
from judge.errors import PipelineError
from judge.standins.random_pipelines import PIPELINES, WORDS, random_pipeline
from prompts.taxonomy import Category, Taxonomy

# diffusers 0.42.1 hands torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
torch.set_num_threads(1)

KITES = Taxonomy(
    "toys",
    "1",
    (
        Category("Kites", "a kite of any colour"),
        Category("Dogs in boats", "one or more dogs"),
        Category("Ink", "ink"),
    ),
)
DEFAULT_LENGTHS = {"flux": {"max_sequence_length": 512}, "sd3": {"max_sequence_length": 256}}


@cache
def shared(name):
    """A pipeline that no test changes."""
    return random_pipeline(name)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_layer_reads_a_category_as_it_reads_the_same_prompt(name):
    """Keys against those of a real call: cross-attention in every layer, joint attention where texts enter."""
    pipeline, read = random_pipeline(name), {}
    layers = attention_layers(pipeline)
    cross = name in ("sd1", "sd2", "sdxl")
    watched = list(layers) if cross else list(layers)[:1]

    def hook(layer):
        def keep(module, args, kwargs):
            read.setdefault(layer, kwargs["encoder_hidden_states"].clone())

        return keep

    for layer in watched:
        layers[layer].register_forward_pre_hook(hook(layer), with_kwargs=True)
    looks = []

    def look(pipe, step, timestep, tensors):
        looks.append(observer.look(pipe, step, None))
        return tensors

    with Observer(pipeline) as observer:
        unguided = {} if name in ("flux", "qwen-image") else {"guidance_scale": 0.0}
        prompts = [text_of(category) for category in KITES.categories]
        given = {
            **unguided,
            **DEFAULT_LENGTHS.get(name, {}),
            "output_type": "latent",
            "height": 32,
            "width": 32,
        }
        pipeline(
            prompts,
            num_inference_steps=1,
            sigmas=[0.7] if not cross else None,
            callback_on_step_end=look,
            **given,
        )
    texts = CategoryTexts(pipeline)
    embeddings, words = texts.encode(KITES)
    assert embeddings.shape[:2] == words.shape
    places = torch.nonzero(embed_texts(pipeline, prompts).words.any(0)).flatten()
    assert torch.allclose(embeddings[words], looks[0].text[:, places][words], rtol=1e-4, atol=1e-5)
    for layer in watched:
        keys, values = texts.keys(KITES, layer, looks[0].log_snr)
        with torch.no_grad():
            given = read[layer][:, places]
            module = layers[layer]
            real_keys = module.to_k(given) if cross else module.add_k_proj(given)
            real_values = module.to_v(given) if cross else module.add_v_proj(given)
            if not cross:
                real_keys = module.norm_added_k(real_keys.unflatten(-1, (module.heads, -1))).flatten(-2)
        for found, real in ((keys, real_keys), (values, real_values)):
            assert float((found - real)[words].abs().max()) <= 1e-4 * float(real[words].abs().max())


def test_words_and_padding():
    for name, ends in (("sd1", 2), ("sdxl", 2), ("flux", 1), ("qwen-image", None)):
        pipeline = shared(name)
        embeddings, words = CategoryTexts(pipeline).encode(KITES)
        tokenizer = pipeline.tokenizer_2 if name == "flux" else pipeline.tokenizer
        counts = [
            len(tokenizer(text_of(category), add_special_tokens=False).input_ids)
            for category in KITES.categories
        ]
        if ends is None:
            # The words of the chat after the prompt are read as part of it.
            after = pipeline.prompt_template_encode.partition("{}")[2]
            ends = len(tokenizer(after).input_ids)
        assert words.sum(1).tolist() == [count + ends for count in counts]
        assert embeddings.shape[1] == max(counts) + ends


def test_joint_attention_reads_texts_by_the_time_and_cross_attention_does_not():
    for name, same in (("sd1", True), ("sd3", False), ("flux", False), ("qwen-image", False)):
        texts = CategoryTexts(shared(name))
        for layer in attention_layers(shared(name)):
            early, late = (texts.keys(KITES, layer, log_snr).keys for log_snr in (-4.0, 4.0))
            assert torch.equal(early, late) is same
            assert torch.isfinite(late).all()


def test_a_text_over_the_length_is_cut_and_what_is_cut_is_said():
    pipeline = shared("sd1")
    long = Category("Kites", "a kite " * 30 + "with a tail")
    texts = CategoryTexts(pipeline)
    taxonomy = Taxonomy("long", "1", (long, KITES.categories[1]))
    assert texts.encode(taxonomy)[0].shape[1] == WORDS
    unread = texts.unread(taxonomy)
    assert set(unread) == {"Kites"}
    assert unread["Kites"].endswith("with a tail")
    kept = text_of(long).lower().removesuffix(unread["Kites"])
    room = len(pipeline.tokenizer(kept, add_special_tokens=False).input_ids)
    assert WORDS - 4 <= room <= WORDS - 2
    assert unread_parts(pipeline, [None, "a kite"]) == (None, None)


@pytest.mark.parametrize(("name", "limit"), [("sd3", 256), ("flux", 512), ("qwen-image", 1024)])
def test_the_encoder_that_reads_the_most_says_what_is_not_read(name, limit):
    pipeline = shared(name)
    tokenizer = getattr(pipeline, {"sd3": "tokenizer_3", "flux": "tokenizer_2"}.get(name, "tokenizer"))
    words = "a" * 2000
    room = limit - tokenizer.num_special_tokens_to_add()
    fits = tokenizer.decode(tokenizer(words, verbose=False, add_special_tokens=False).input_ids[:room])
    assert unread_parts(pipeline, [fits]) == (None,)
    assert unread_parts(pipeline, [f"{fits} z"])[0] == "z"


def test_computed_once_per_taxonomy_until_the_pipeline_changes(monkeypatch):
    pipeline, calls = random_pipeline("sd1"), []
    layer = next(iter(attention_layers(pipeline)))
    encode = pipeline.encode_prompt
    monkeypatch.setattr(
        pipeline, "encode_prompt", lambda **options: calls.append(options) or encode(**options)
    )
    texts = CategoryTexts(pipeline)
    first = texts.keys(KITES, layer).keys
    assert texts.keys(KITES, layer).keys is first
    assert texts.encode(KITES)[0] is texts.encode(KITES)[0]
    assert len(calls) == 1
    texts.encode(Taxonomy("others", "1", (Category("Cats", "a cat"),)))
    assert len(calls) == 2
    texts.forget()
    texts.keys(KITES, layer)
    assert len(calls) == 3
    pipeline.text_encoder = random_pipeline("sd1", seed=1).text_encoder
    assert not torch.allclose(texts.keys(KITES, layer).keys, first)
    pipeline.unet = random_pipeline("sd1", seed=1).unet
    before = texts.keys(KITES, layer).keys
    assert torch.equal(before, attention_layers(pipeline)[layer].to_k(texts.encode(KITES)[0]))


def test_a_lora_is_read_and_loading_scaling_and_removing_it_is_noticed():
    """The projections are called: peft leaves the weight of the layer below as it was."""
    pipeline = random_pipeline("sd1")
    layer = next(iter(attention_layers(pipeline)))
    texts = CategoryTexts(pipeline)
    plain = texts.keys(KITES, layer).keys
    pipeline.unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), adapter_name="style"
    )
    loaded = texts.keys(KITES, layer).keys
    assert not torch.allclose(loaded, plain)
    pipeline.unet.set_adapters(["style"], [0.5])
    half = texts.keys(KITES, layer).keys
    assert torch.allclose(half - plain, (loaded - plain) / 2, atol=1e-5)
    pipeline.unet.disable_adapters()
    assert torch.allclose(texts.keys(KITES, layer).keys, plain, atol=1e-6)
    pipeline.unet.enable_adapters()
    pipeline.set_adapters("style", 1.0)
    pipeline.fuse_lora(components=["unet"])
    assert torch.allclose(texts.keys(KITES, layer).keys, loaded, atol=1e-5)
    pipeline.unfuse_lora(components=["unet"])
    pipeline.unload_lora_weights()
    assert torch.allclose(texts.keys(KITES, layer).keys, plain, atol=1e-5)


def test_a_pipeline_without_its_text_encoder_says_so():
    pipeline = random_pipeline("flux")
    pipeline.text_encoder_2 = None
    with pytest.raises(PipelineError, match="no `text_encoder_2`"):
        CategoryTexts(pipeline).encode(KITES)
    without_t5 = random_pipeline("sd3")
    without_t5.text_encoder_3 = None
    embeddings, words = CategoryTexts(without_t5).encode(KITES)
    assert embeddings.shape[1] <= WORDS
    assert words.any(1).all()


def test_names_only():
    category = Category("Kites", "a kite of any colour", name_only=True)
    assert text_of(category) == "Kites"
    assert text_of(KITES.categories[0]) == "Kites: a kite of any colour"
