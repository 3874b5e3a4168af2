"""peft: small transformers of transformers with adapters, whose layers lie within the adapters'."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo_models.entry import Entry, library, tokens
from zoo_models.transformers_text import GROUPED, SMALL, T5, VOCABULARY, make

LLAMA = ("LlamaForCausalLM", "LlamaConfig", GROUPED)
BERT = ("BertForSequenceClassification", "BertConfig", SMALL)


def _make(model: str, config: str, options: dict[str, Any], adapter: str, adapter_options: dict[str, Any]) -> nn.Module:
    base = make(model, config, {"vocab_size": VOCABULARY} | options, {})
    peft = library("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of one library about the other
        adapted: nn.Module = peft.get_peft_model(base, getattr(peft, adapter)(**adapter_options))
    return adapted


def _ids(batch: int, variant: int) -> dict[str, Tensor]:
    return {"input_ids": tokens(batch, variant, 12, 19, vocabulary=VOCABULARY)}


def _pair(batch: int, variant: int) -> dict[str, Tensor]:
    ids = _ids(batch, variant)["input_ids"]
    return {"input_ids": ids, "decoder_input_ids": ids[:, :9]}


def _entry(
    name: str,
    base: tuple[str, str, dict[str, Any]],
    adapter: str,
    inputs: Callable[[int, int], dict[str, Tensor]] = _ids,
    **options: Any,
) -> Entry:
    return Entry(f"peft/{name}", partial(_make, *base, adapter, options), inputs)


ALL = "all-linear"
ENTRIES = (
    _entry("lora_llama", LLAMA, "LoraConfig", r=4, task_type="CAUSAL_LM"),
    _entry("lora_llama_all_linear", LLAMA, "LoraConfig", r=4, target_modules=ALL, task_type="CAUSAL_LM"),
    _entry("dora_llama", LLAMA, "LoraConfig", r=4, use_dora=True, task_type="CAUSAL_LM"),
    _entry("ia3_llama", LLAMA, "IA3Config", task_type="CAUSAL_LM"),
    _entry("lora_bert", BERT, "LoraConfig", r=4, task_type="SEQ_CLS"),
    _entry("loha_bert", BERT, "LoHaConfig", r=4, target_modules=["query", "value"], task_type="SEQ_CLS"),
    _entry(
        "oft_bert", BERT, "OFTConfig", oft_block_size=16, r=0, target_modules=["query", "value"], task_type="SEQ_CLS"
    ),
    _entry(
        "lora_t5", ("T5ForConditionalGeneration", "T5Config", T5), "LoraConfig", _pair, r=4, task_type="SEQ_2_SEQ_LM"
    ),
)
