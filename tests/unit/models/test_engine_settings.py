"""Settings with which a vLLM engine is asked for answers."""

from types import SimpleNamespace
from typing import Any

from caskd.models.engines.answer_shapes import FURTHER_NEUTRAL, NEUTRAL
from caskd.models.engines.vllm_engine import VllmEngine


def test_an_engine_is_asked_for_the_likeliest_token_by_every_setting() -> None:
    asked: list[dict[str, Any]] = []
    engine = object.__new__(VllmEngine)
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta"))
    engine._vllm = SimpleNamespace(SamplingParams=dict, sampling_params=kinds)
    llm = SimpleNamespace(add_request=lambda name, prompt, settings: asked.append(settings))
    engine._llm, engine._processes = SimpleNamespace(llm_engine=llm), []
    engine.begin("a", [1, 2], max_new_tokens=4, stop_ids=[2], extra={})
    neutral = {**NEUTRAL, **FURTHER_NEUTRAL, "ignore_eos": True, "temperature": 0.0}
    assert neutral.items() <= asked[0].items()
    assert asked[0]["stop_token_ids"] == [2]
