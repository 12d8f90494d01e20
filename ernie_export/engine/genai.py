"""`genai_config.json`: with it onnxruntime-genai runs the files of a bundle as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ernie_export.engine.providers import CUDA

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig

FILE = "genai_config.json"


#: onnxruntime-genai's own words for what a bundle runs on, by the runtime; none: the CPU.
PROVIDERS: dict[str, dict[str, dict[str, str]]] = {
    "onnxruntime-cuda": {"cuda": {"use_tf32": CUDA.options["use_tf32"]}},
    "onnxruntime-rtx": {"NvTensorRtRtx": {}},
}


def genai_config(config: ErnieConfig, graph: str, context: int, runtime: str) -> dict[str, Any]:
    """What onnxruntime-genai must know of the graph; its names are those of graph/trace.py."""
    providers = [PROVIDERS[runtime]] if runtime in PROVIDERS else []
    return {
        "model": {
            "type": "ernie4_5",
            "bos_token_id": config.bos_token_id,
            "eos_token_id": list(config.eos_token_id),
            "pad_token_id": config.pad_token_id,
            "vocab_size": config.vocab_size,
            "context_length": context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers},
                "filename": graph,
                "hidden_size": config.hidden_size,
                "head_size": config.head_dim,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_key_value_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": context, "do_sample": False, "past_present_share_buffer": True},
    }
