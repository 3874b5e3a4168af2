"""transformers: encoders, decoders and encoder-decoders of text, with small configurations."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo_models.entry import Entry, library, tokens

VOCABULARY = 120


def make(model: str, config: str, options: dict[str, Any], parts: dict[str, tuple[str, dict[str, Any]]]) -> nn.Module:
    """A model from its configuration; ``parts`` are configurations within it."""
    transformers = library("transformers")
    inner = {key: getattr(transformers, kind)(**values) for key, (kind, values) in parts.items()}
    return getattr(transformers, model)(getattr(transformers, config)(**options, **inner))


def _ids(batch: int, variant: int) -> Tensor:
    return tokens(batch, variant, 12, 19, vocabulary=VOCABULARY)


def _text(name: str, model: str, config: str, **options: Any) -> Entry:
    options = {"vocab_size": VOCABULARY} | options
    return Entry(
        f"transformers/{name}", partial(make, model, config, options, {}), lambda b, v: {"input_ids": _ids(b, v)}
    )


def _pair(name: str, model: str, config: str, **options: Any) -> Entry:
    """Source and target."""

    def inputs(batch: int, variant: int) -> dict[str, Tensor]:
        return {"input_ids": _ids(batch, variant), "decoder_input_ids": _ids(batch, variant)[:, :9]}

    return Entry(f"transformers/{name}", partial(make, model, config, {"vocab_size": VOCABULARY} | options, {}), inputs)


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
GROUPED = SMALL | {"num_key_value_heads": 2}
SEQ2SEQ = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
}
NO_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
EXPERTS = {"num_experts_per_tok": 2}

ENTRIES = (
    # encoders
    _text("bert", "BertModel", "BertConfig", vocab_size=30522, num_hidden_layers=4),
    _text("bert_classifier", "BertForSequenceClassification", "BertConfig", **SMALL),
    _text("bert_masked_lm", "BertForMaskedLM", "BertConfig", **SMALL),
    _text("roberta", "RobertaForMaskedLM", "RobertaConfig", **SMALL, max_position_embeddings=64),
    _text("distilbert", "DistilBertModel", "DistilBertConfig", dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    _text("albert", "AlbertModel", "AlbertConfig", **SMALL, embedding_size=32),
    _text("electra", "ElectraForPreTraining", "ElectraConfig", **SMALL, embedding_size=32),
    _text(
        "deberta_v2",
        "DebertaV2Model",
        "DebertaV2Config",
        **SMALL,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    _text("mpnet", "MPNetModel", "MPNetConfig", **SMALL),
    _text("modernbert", "ModernBertModel", "ModernBertConfig", **SMALL, **NO_SPECIAL),
    _text("convbert", "ConvBertModel", "ConvBertConfig", **SMALL, embedding_size=64),
    _text("squeezebert", "SqueezeBertModel", "SqueezeBertConfig", **SMALL, embedding_size=64),
    _text("mobilebert", "MobileBertModel", "MobileBertConfig", num_hidden_layers=2),
    _text("fnet", "FNetModel", "FNetConfig", hidden_size=64, num_hidden_layers=2, intermediate_size=128),
    _text("xlnet", "XLNetModel", "XLNetConfig", d_model=64, n_layer=2, n_head=4, d_inner=128),
    # decoders
    _text("gpt2", "GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4),
    _text(
        "gpt_neo",
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
    ),
    _text("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL),
    _text("gptj", "GPTJForCausalLM", "GPTJConfig", n_embd=64, n_layer=2, n_head=4, rotary_dim=8),
    _text(
        "opt",
        "OPTForCausalLM",
        "OPTConfig",
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=128,
        word_embed_proj_dim=64,
    ),
    _text("llama", "LlamaForCausalLM", "LlamaConfig", **GROUPED),
    _text("mistral", "MistralForCausalLM", "MistralConfig", **GROUPED, sliding_window=8),
    _text("mixtral", "MixtralForCausalLM", "MixtralConfig", **GROUPED, **EXPERTS, num_local_experts=4),
    _text("qwen2", "Qwen2ForCausalLM", "Qwen2Config", **GROUPED),
    _text("qwen3", "Qwen3ForCausalLM", "Qwen3Config", **GROUPED, head_dim=16),
    _text(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        **GROUPED,
        **EXPERTS,
        head_dim=16,
        num_experts=4,
        moe_intermediate_size=32,
    ),
    _text("gemma", "GemmaForCausalLM", "GemmaConfig", **GROUPED, head_dim=16),
    _text("gemma2", "Gemma2ForCausalLM", "Gemma2Config", **GROUPED, head_dim=16),
    _text("phi", "PhiForCausalLM", "PhiConfig", **SMALL),
    _text("phi3", "Phi3ForCausalLM", "Phi3Config", **GROUPED, **NO_SPECIAL),
    _text("falcon", "FalconForCausalLM", "FalconConfig", hidden_size=64, num_hidden_layers=2, num_attention_heads=4),
    _text("bloom", "BloomForCausalLM", "BloomConfig", hidden_size=64, n_layer=2, n_head=4),
    _text("mpt", "MptForCausalLM", "MptConfig", d_model=64, n_layers=2, n_heads=4, max_seq_len=64),
    _text("olmo", "OlmoForCausalLM", "OlmoConfig", **SMALL),
    _text("olmo2", "Olmo2ForCausalLM", "Olmo2Config", **SMALL),
    _text("stablelm", "StableLmForCausalLM", "StableLmConfig", **SMALL, num_key_value_heads=4),
    _text("starcoder2", "Starcoder2ForCausalLM", "Starcoder2Config", **GROUPED),
    _text("cohere", "CohereForCausalLM", "CohereConfig", **SMALL),
    _text("mamba", "MambaForCausalLM", "MambaConfig", hidden_size=64, num_hidden_layers=2),
    _text("mamba2", "Mamba2ForCausalLM", "Mamba2Config", hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16),
    _text("rwkv", "RwkvForCausalLM", "RwkvConfig", hidden_size=64, num_hidden_layers=2, attention_hidden_size=64),
    # encoder-decoders
    _pair("t5", "T5ForConditionalGeneration", "T5Config", **T5),
    _pair("mt5", "MT5ForConditionalGeneration", "MT5Config", **T5),
    _pair("bart", "BartForConditionalGeneration", "BartConfig", **SEQ2SEQ),
    _pair("pegasus", "PegasusForConditionalGeneration", "PegasusConfig", **SEQ2SEQ),
    _pair("marian", "MarianMTModel", "MarianConfig", **SEQ2SEQ, pad_token_id=0, decoder_start_token_id=0),
    _pair("m2m_100", "M2M100ForConditionalGeneration", "M2M100Config", **SEQ2SEQ),
    _pair(
        "prophetnet",
        "ProphetNetModel",
        "ProphetNetConfig",
        hidden_size=64,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_encoder_attention_heads=4,
        num_decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
    ),
)
