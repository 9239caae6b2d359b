"""The tag that tells converted speech from recorded speech, in the metadata of an audio file."""

from __future__ import annotations

from importlib.metadata import version

PROVENANCE_COMMENT = "Converted speech: the voice in this recording was made by AutoVoice."


def provenance_tags() -> dict[str, str]:
    """Names and values of the metadata fields, as libsndfile calls them."""
    return {"software": f"AutoVoice {version('autovoice')}", "comment": PROVENANCE_COMMENT}
