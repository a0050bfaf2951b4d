"""The last proof of a saved file: ComfyUI loads it as Load Diffusion Model does, and the model answers.

A file can be right byte for byte and still make a black video: a scale that overflows float16, a key that nobody reads. So the file
is loaded, whatever ComfyUI complains about is kept, and the model is asked once at a high and once at a low sigma of its expert's
range, with a small random latent and text. Of a model of flow (comfy/model_sampling.py, CONST: x = sigma noise + (1 - sigma) image,
denoised = x - sigma v) the answer is v, and what is told is its difference to that of a reference, in L2 over the reference's:
    |v - v_ref| / |v_ref|
Per layer the error is larger, and many do not show: the norms of q and k divide a wrong scale of these two away.
"""
import os

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.sd
import torch

from ..engine.bases.gguf_header import is_gguf
from ..engine.errors import DEVICE_ERRORS, MergeError
from .complaints import Listening
from .gguf_loader import load_gguf

SIGMAS = {"high_noise": (0.98, 0.92), "low_noise": (0.8, 0.2), "model": (0.95, 0.3)}   # of T2V (0.875) and I2V (0.9) alike
FRAMES, SIDE, TOKENS = 1, 16, 8                    # of the latent and the text: 64 patches of 1 x 2 x 2
TEXT_SIZE = 0.1                                    # rms of the random text: small, so that the probe itself overflows nothing
SEED = 20
LONGEST = 400                                      # characters of one complaint: it may list every key of a model
BROKEN = 0.5                                       # no format comes near: tiny models of 4-bit weights and inputs differ by 0.1


def check(saved_path: str, reference=None, *, role: str = "model") -> tuple[list[str], dict]:
    """Load a saved file as Load Diffusion Model does, ask it at two sigmas, and compare its answers with a reference's.

    reference: MODEL of the same merge, as a preview; None: nothing to compare with. role: high_noise, low_noise, model; tells the
    sigmas. Returns lines for a person, and {"sigmas", "differences" (None without a reference), "problems"}: warnings of ComfyUI
    about the file, differences over 0.5, a reference that is not finite. Nothing stays loaded afterwards, neither file nor
    reference. Raises MergeError when ComfyUI cannot load the file, or when it answers with NaN or infinity.
    """
    name, sigmas, logged = os.path.basename(saved_path), SIGMAS[role], []
    with torch.inference_mode(), Listening(logged):              # as ComfyUI runs nodes; it cannot move weights from in there out
        found = _answers(_loaded(saved_path, name), sigmas)
    problems = [line.strip()[:LONGEST] for line in logged]
    said = "".join(f"; ComfyUI says: {problem}" for problem in problems)       # a missing tensor is memory as it was, often NaN
    strange = _not_finite(found, sigmas)
    if strange:
        raise MergeError(f"{name}: the saved model: {strange}; the file is there, but it would make a black video; save it in "
                         f"another format{said}")
    differences = None
    if reference is not None:
        with torch.inference_mode():
            wanted = _answers(reference, sigmas)
        strange = _not_finite(wanted, sigmas)
        if strange:
            problems.append(f"its reference: {strange}; check the LoRA strengths: the merge itself is broken")
        else:
            differences = [float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)]
            problems += [f"at sigma {sigma:g} it differs from the preview by {difference:.1%}, far more than any format does"
                         for sigma, difference in zip(sigmas, differences, strict=True) if difference > BROKEN]
    return _lines(name, sigmas, differences, problems), {"sigmas": list(sigmas), "differences": differences, "problems": problems}


def _lines(name: str, sigmas, differences, problems: list[str]) -> list[str]:
    told = f"{name}: ComfyUI loads it; finite at sigma {sigmas[0]:g} and {sigmas[1]:g}"
    if differences is not None:
        told += f"; differs from the preview by {differences[0]:.2%} and {differences[1]:.2%}"
    return [told, *(f"{name}: PROBLEM: {problem}" for problem in problems)]


def _not_finite(answers: list[torch.Tensor], sigmas) -> str | None:
    """What is wrong with an answer that is not finite; None when all are."""
    bad = [sigma for sigma, answer in zip(sigmas, answers, strict=True) if not bool(torch.isfinite(answer).all())]
    return f"expected finite numbers at sigma {bad[0]:g}, found NaN or infinity" if bad else None


def _loaded(path: str, name: str):
    """The file as a MODEL; not kept here. Raises MergeError when ComfyUI refuses it."""
    try:
        return load_gguf(path) if is_gguf(path) else comfy.sd.load_diffusion_model(path)
    except DEVICE_ERRORS:
        raise
    except (ValueError, KeyError, RuntimeError) as error:
        raise MergeError(f"{name}: expected a file that ComfyUI loads, but it says {type(error).__name__}: "
                         f"{str(error).strip()[:LONGEST]}") from error


def _answers(model, sigmas) -> list[torch.Tensor]:
    """v of a MODEL at each sigma, float32 on the CPU; the MODEL is not loaded afterwards."""
    try:
        return [_answer(model, sigma) for sigma in sigmas]
    finally:
        mm.unload_model_and_clones(model)          # empties the card's cache too


def _answer(model, sigma: float) -> torch.Tensor:
    """One call by ComfyUI's own sampling: it adds what the kind of model needs (image channels of I2V, frames of VACE)."""
    draw, kept = torch.Generator().manual_seed(SEED), []
    channels = model.get_model_object("latent_format").latent_channels
    noise, image = (torch.randn(1, channels, FRAMES, SIDE, SIDE, generator=draw) for _ in range(2))
    text = TEXT_SIZE * torch.randn(1, TOKENS, model.model.diffusion_model.text_dim, generator=draw)

    def ask(asked, x, sigmas, extra_args=None, **rest):
        denoised = asked(x, sigmas[0] * x.new_ones(x.shape[0]), **(extra_args or {}))
        kept.append(((x - denoised) / sigmas[0]).float().cpu())
        return denoised

    comfy.sample.sample_custom(model, noise, 1.0, comfy.samplers.KSAMPLER(ask), torch.tensor([sigma, 0.0]), [[text, {}]],
                               [[text, {}]], image, disable_pbar=True, seed=SEED)
    return kept[0]
