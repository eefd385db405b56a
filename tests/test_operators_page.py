"""docs/operators.md lists every operator that models call, and says what is known of each."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("timm")
pytest.importorskip("transformers")

from benchmarks.operators import (
    PAGE,
    TABLE,
    count,
    page,
    read_table,
    small_models,
    subjects,
    what_is_known,
)

SMALL = ("resnet18", "mobilenet_v3_small", "swin_t", "shufflenet_v2_x0_5", "test_vit", "test_vgg")
"""A few of the classifiers; the other libraries' models are small to begin with."""

UNUSUAL = (
    *("mixtral (sdpa)", "mamba (eager)", "deberta-v2 (eager)", "t5 (sdpa)", "gemma3 (eager)"),
    *("bloom (eager)", "falcon (sdpa)", "bert (sdpa)", "gpt2 (eager)", "phi3 (sdpa)"),
    *("clip (sdpa)", "wav2vec2 (eager)", "segformer (sdpa)", "swin (sdpa)", "siglip (eager)"),
    *("dinov2 (eager)", "whisper (eager)", "autoencoder", "sd 3"),
)


def test_every_operator_is_in_the_table() -> None:
    classifiers = [s for s in itertools.islice(subjects(), 200) if s[0].split(":")[1] in SMALL]
    small = [s for s in small_models() if s[0].split(":")[1] in UNUSUAL]
    assert len(classifiers) + len(small) == len({s[0] for s in [*classifiers, *small]}) >= 24
    missing = set(count([*classifiers, *small])) - set(read_table(TABLE.read_text("utf-8"))[0])
    assert not missing, f"run python -m benchmarks.operators: {sorted(missing)}"


def test_the_table_says_what_is_known() -> None:
    said, _ = read_table(TABLE.read_text("utf-8"))
    assert len(said) > 100
    for name, known in said.items():
        assert known == what_is_known(name) != "unknown", name


def test_the_page_is_made_of_the_table() -> None:
    text = PAGE.read_text("utf-8")
    models = int(text.split("that ")[1].split(" models")[0])
    _, counts = read_table(TABLE.read_text("utf-8"))
    assert text == page(counts, models), "run python -m benchmarks.operators"
