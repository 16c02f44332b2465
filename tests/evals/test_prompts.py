"""The prompts of zero-shot classification."""

import json

from siglip2_jax.evals.prompts import OPENAI_TEMPLATES


def test_eighty_templates_with_one_place_each():
    assert len(OPENAI_TEMPLATES) == len(set(OPENAI_TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in OPENAI_TEMPLATES)
    assert all(template.count("{") == template.count("}") == 1 for template in OPENAI_TEMPLATES)


def test_templates_are_the_published_ones(shared):
    """As CLIP Benchmark stores them; it adds the bare label."""
    stored = json.loads((shared / "data/zero_shot_text/clip_templates.json").read_text())
    assert sorted(OPENAI_TEMPLATES) == sorted(set(stored["clip_paper"]) - {"{}"})
