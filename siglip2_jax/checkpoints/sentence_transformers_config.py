"""The JSON files with which sentence-transformers opens an export of fixed resolution.

Without them it pads texts to the longest of a batch, and their embeddings are wrong: the text tower
reads its last position, which must be that of the full length. Keys are those of version 6.
"""

from __future__ import annotations

import json

from siglip2_jax.models.config import ModelConfig

MODULES, TRANSFORMER = "modules.json", "sentence_bert_config.json"
SIMILARITY = "config_sentence_transformers.json"
ROOM = "sentence_transformers.base.modules"


def sentence_transformers_files(config: ModelConfig) -> dict[str, bytes]:
    """Files by name; none at native resolution, which sentence-transformers does not know."""
    if config.native_resolution:
        return {}
    tower = {"method_output_name": "pooler_output"}
    contents = {
        MODULES: [
            {"idx": 0, "name": "0", "path": "", "type": f"{ROOM}.transformer.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{ROOM}.normalize.Normalize"},
        ],
        TRANSFORMER: {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "get_text_features"} | tower,
                "image": {"method": "get_image_features"} | tower,
            },
            "module_output_name": "sentence_embedding",
            "processing_kwargs": {
                "text": {
                    "padding": "max_length",
                    "max_length": config.text.length,
                    "truncation": True,
                }
            },
        },
        SIMILARITY: {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    return {name: json.dumps(content, indent=2).encode() for name, content in contents.items()}
