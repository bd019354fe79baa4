"""Cross-encoders: scores are the model's own, whatever else stands in the batch; absent ones are skipped aloud."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from evals.engines.rerank import Reranker, find_reranker
from evals.errors import AdvisorError
from evals.events import Event, Note, Progress
from tests.conftest import VOCABULARY, save_tokenizer

PAIRS = [
    ("Who?", "Ada wrote it."),
    ("Who?", "It was written in the long winter of that year, by somebody who was never named."),
    ("When did the ship leave?", "At 06:40."),
    ("When did the ship leave?", "Nobody knows. " * 8),
    ("", "Nobody asked."),
]


def save_encoder(folder: Path, labels: int = 1) -> Path:
    """Two BERT layers over characters with random weights, and a head of so many labels."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    save_tokenizer(folder, None)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=0,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("models") / "tiny-cross-encoder")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, as on a processor without bf16 units."""
    monkeypatch.setattr("evals.engines.rerank.bf16_units", list)


@pytest.mark.usefixtures("exact")
def test_scores_are_the_logits_of_the_model(encoder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(encoder).eval()
    expected = []
    for question, passage in PAIRS:
        read = tokenizer(question, passage, return_tensors="pt", truncation=True)
        with torch.no_grad():
            expected.append(model(**read).logits.item())
    scores = Reranker(str(encoder)).score(PAIRS)
    assert scores.dtype == np.float32
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)
    assert np.ptp(scores) > 0.1


@pytest.mark.usefixtures("exact")
def test_a_score_does_not_depend_on_its_batch_or_its_place(encoder: Path) -> None:
    together = Reranker(str(encoder)).score(PAIRS)
    alone = np.concatenate([Reranker(str(encoder)).score([pair]) for pair in PAIRS])
    turned = Reranker(str(encoder)).score(PAIRS[::-1])[::-1]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together == pytest.approx(turned, abs=1e-4)
    assert Reranker(str(encoder)).score(PAIRS).tolist() == together.tolist()


def test_bfloat16_changes_little(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.engines.rerank.bf16_units", lambda: ["bf16"])
    quick = Reranker(str(encoder)).score(PAIRS)
    monkeypatch.setattr("evals.engines.rerank.bf16_units", list)
    slow = Reranker(str(encoder)).score(PAIRS)
    assert quick.tolist() != slow.tolist()
    assert quick == pytest.approx(slow, abs=0.05 * max(1.0, float(np.abs(slow).max())))


def test_a_pair_is_read_once(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, read = Reranker(str(encoder)), list[int]()
    model_reads = Reranker._read
    monkeypatch.setattr(Reranker, "_read", lambda self, batch: read.append(len(batch)) or model_reads(self, batch))
    first = reranker.score([*PAIRS, PAIRS[0]])
    assert first[0] == first[-1]
    assert reranker.score(PAIRS[:2]).tolist() == first[:2].tolist()
    assert read == [len(PAIRS)]
    assert reranker.score([]).shape == (0,)


def test_progress_is_told_of_many_pairs(encoder: Path) -> None:
    heard: list[Event] = []
    Reranker(str(encoder), heard.append).score([("q", f"passage {at}") for at in range(300)])
    ticks = [one for one in heard if isinstance(one, Progress)]
    assert (ticks[-1].done, ticks[-1].total) == (300, 300)


def test_a_pair_longer_than_the_window_is_cut_not_refused(encoder: Path) -> None:
    scores = Reranker(str(encoder)).score([("Who?", "x" * 5000), ("y" * 5000, "z" * 5000)])
    assert np.isfinite(scores).all()


def test_the_fingerprint_changes_with_the_weights(encoder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    other = shutil.copytree(encoder, tmp_path / "other")
    assert Reranker(str(other)).fingerprint == Reranker(str(encoder)).fingerprint
    model = AutoModelForSequenceClassification.from_pretrained(other)
    with torch.no_grad():
        model.classifier.weight += 1
    model.save_pretrained(other)
    assert Reranker(str(other)).fingerprint != Reranker(str(encoder)).fingerprint


def test_a_classifier_is_no_reranker(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "classifier", labels=3)
    with pytest.raises(AdvisorError, match="3 scores"):
        Reranker(str(folder)).score(PAIRS)


def test_pickled_weights_are_never_loaded(encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(AdvisorError, match="safetensors"):
        Reranker(str(folder)).score(PAIRS)


def test_damaged_weights_are_an_error_with_advice(encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(AdvisorError, match=r"cannot be loaded[\s\S]*What to do"):
        Reranker(str(folder)).score(PAIRS)


def test_one_that_is_here_is_found_without_a_word(encoder: Path) -> None:
    heard: list[Event] = []
    found = find_reranker(str(encoder), heard.append)
    assert found is not None
    assert found.folder == encoder
    assert not heard


@pytest.mark.parametrize("name", ["./no-such-folder", "nobody/no-such-reranker", "no name at all"])
def test_one_that_is_not_here_is_skipped_aloud(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **settings: object) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(str(_[0]))
        if settings.get("local_files_only"):
            raise LocalEntryNotFoundError("not cached")
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    heard: list[Event] = []
    assert find_reranker(name, heard.append) is None
    (said,) = [one for one in heard if isinstance(one, Note)]
    assert said.level == "warning"
    assert said.text.startswith("Reranking is skipped: ")
    assert name in said.text
    with pytest.raises(AdvisorError, match="What to do"):
        Reranker(name).score(PAIRS)
