"""Refusals sorted into the few causes that a ledger counts and weighs."""

# A phrase of the reason -> its cause; first found wins. The reasons are worded in dialects.py, fit.py, strangers.py and adapters/.
CAUSES = (
    ("text encoder", "text encoder"), ("image branch", "image branch absent"), ("but the model has", "wrong depth"),
    ("transposed", "transposed"), ("exists only in", "of another family"), ("made for the", "wrong width"),
    ("does not fit", "wrong shape"), ("control LoRA", "needs another model"), ("which no merge can", "needs another model"),
    ("no such layer", "unknown layer"), ("not a key of a LoRA", "not a LoRA's"),
)
BESIDE = "text encoder"                            # meant for another model that the user loads too: not lost


def cause_of(reason: str) -> str:
    """The cause that a reason belongs to; "incomplete" for factors without partner, wrong dtypes and the like."""
    return next((cause for phrase, cause in CAUSES if phrase in reason), "incomplete")
