"""What must hold of every reader's report: the right numbers, from the image's own bytes, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCE = 1e-4  # of every number of an embedding, and of every cosine, against the reference
QUANTISED_COSINE = 0.99  # of each bf16/fp8 embedding with the reference embedding of its sentence
CLOSE, FAR = 0.6, 0.2  # the cosine of sentences that mean the same is above, of unrelated ones below


class Checks:
    """Prints each check as it is made, and counts those that failed."""

    def __init__(self) -> None:
        self.failed = 0

    def that(self, holds: bool, claim: str) -> None:
        """Record one claim."""
        self.failed += not holds
        print(f"   {'ok    ' if holds else 'FAILED'} {claim}")

    def numbers(self, reports: list[dict[str, Any]], reference: dict[str, Any], quantised: bool) -> None:
        """The embeddings of every reader against those that torch computed."""
        sentences = reference["sentences"]
        wanted = np.array([sentence["embedding"] for sentence in sentences])
        token_ids = [sentence["token_ids"] for sentence in sentences]
        same_tokens = all(report["token_ids"] == token_ids for report in reports)
        self.that(same_tokens, f"{len(sentences)} sentences give the reference's token numbers")
        got = np.array([report["embeddings"] for report in reports])  # (readers, sentences, 384)
        if quantised:
            lowest = float((got * wanted).sum(axis=2).min())
            self.that(
                lowest > QUANTISED_COSINE,
                f"cosine with the reference embeddings at least {lowest:.4f} (> {QUANTISED_COSINE})",
            )
        else:
            worst = float(np.abs(got - wanted).max())
            self.that(worst <= TOLERANCE, f"embeddings differ from torch's by at most {worst:.1e} (<= {TOLERANCE})")
            a, b, cosine = (np.array([pair[key] for pair in reference["pairs"]]) for key in ("a", "b", "cosine"))
            worst = float(np.abs((got[:, a] * got[:, b]).sum(axis=2) - cosine).max())
            self.that(worst <= TOLERANCE, f"cosines of the pairs differ by at most {worst:.1e} (<= {TOLERANCE})")
        self.pairs(got, reference["pairs"])

    def pairs(self, embeddings: np.ndarray, pairs: list[dict[str, Any]]) -> None:
        """Similar sentences lie close together, unrelated ones far apart, in every reader."""
        kinds = {}
        for kind in ("close", "far"):
            a, b = (np.array([pair[key] for pair in pairs if pair["kind"] == kind]) for key in ("a", "b"))
            kinds[kind] = (embeddings[:, a] * embeddings[:, b]).sum(axis=2)
        lowest, highest = float(kinds["close"].min()), float(kinds["far"].max())
        self.that(
            lowest > CLOSE and highest < FAR,
            f"similar sentences: cosine {lowest:.2f} or more (> {CLOSE}); unrelated: {highest:.2f} or less (< {FAR})",
        )

    def views(self, reports: list[dict[str, Any]], crc: int) -> None:
        """Every tensor is the image's own memory, and holds the bytes of the source files."""
        views = [report["views"] for report in reports]
        count = views[0]["tensors"]

        def everywhere(key: str, value: object) -> bool:
            return all(view[key] == value for view in views)

        def fewest(key: str) -> int:
            return min(view[key] for view in views)

        self.that(
            all(report["crc"] == crc for report in reports),
            f"{count} tensors ({', '.join(views[0]['dtypes'])}) equal the source files byte by byte (CRC-32)",
        )
        self.that(
            fewest("in_mapping") == count and everywhere("permissions", ["r--s"]),
            f"{fewest('in_mapping')} of {count} arrays lie in the descriptor's mapping (r--s: shared)",
        )
        self.that(
            everywhere("own_their_data", 0) and everywhere("writeable", 0) and everywhere("same_memory_twice", count),
            "no array owns its data, none is writeable, viewing a tensor twice gives the same memory",
        )
        self.that(
            fewest("aligned_256") == count,
            f"{fewest('aligned_256')} of {count} tensors start at a multiple of 256 bytes",
        )

    def memory(self, reports: list[dict[str, Any]]) -> None:
        """The weights cost no private memory, and several readers hold them once."""
        weights = reports[0]["views"]["nbytes"]
        size = reports[0]["image_size"]
        copied = sum(report["usage"]["computed"]["image"]["anonymous"] for report in reports)
        self.that(copied == 0, f"no page of the mapping was copied for one process ({copied} bytes anonymous)")
        growth = max(private(report, "holding") - private(report, "ready") for report in reports)
        self.that(
            growth < weights / 20,
            f"reading all {weights / 1e6:.1f} MB of weights cost {growth / 1e6:.2f} MB of private memory",
        )
        pss = sum(report["usage"]["computed"]["image"]["pss"] for report in reports)
        self.that(
            pss <= 1.05 * size,
            f"the image is in memory once: {pss / 1e6:.1f} MB PSS over all readers, size {size / 1e6:.1f} MB",
        )


def private(report: dict[str, Any], moment: str) -> int:
    """Bytes of anonymous memory, which only this process has; the image's mapping is judged by itself."""
    usage = report["usage"][moment]
    return usage["process"]["anonymous"] - usage["image"]["anonymous"]
