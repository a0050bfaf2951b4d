"""Sessions made in a test, with everything that was put in kept beside them as the oracle."""
import torch
from wan22_master.engine.calibration.session import RunFacts, Session
from wan22_master.engine.calibration.statistics import Recorder
from wan22_master.engine.calibration.subject import Subject

POINTS = {"blocks.0.self_attn.q": ("blocks.0.self_attn.q", "blocks.0.self_attn.k", "blocks.0.self_attn.v"),
          "blocks.0.ffn.2": ("blocks.0.ffn.2",)}
SUBJECT = Subject("header:1 name:base.safetensors", "base.safetensors", task="t2v", size="14B", stored_as="bf16")
WIDTH = {"blocks.0.self_attn.q": 6, "blocks.0.ffn.2": 10}
ROLE = "high_noise"


def session(tmp_path, name="one"):
    return Session.create(tmp_path / "calibration", name)


def inputs(seed, rows=40):
    """Point -> (2, rows, in) bf16: two parts, channels of different size."""
    draw = torch.Generator().manual_seed(seed)
    return {point: (torch.randn(2, rows, width, generator=draw) * torch.arange(1, width + 1)).bfloat16()
            for point, width in WIDTH.items()}


def write_steps(writer, steps, seed, look=inputs):
    """Record these steps; step -> what was put in."""
    recorder, given = Recorder(POINTS, seed=writer.seed, tokens=writer.tokens), {}
    for step in steps:
        given[step] = look(1000 * seed + step)
        recorder.begin(1.0 - step / 10, ("uncond", "cond"))
        for point, x in given[step].items():
            recorder.see(point, x)
        writer.write_step(recorder.take(step))
    return given


def run(found, prompt="p", steps=range(4), *, seed=1, finish=True, role=ROLE, expected=None):
    """One run; step -> what was put in."""
    facts = RunFacts(prompt_id=prompt, prompt=f"of {prompt}", steps=len(steps) if expected is None else expected, cfg=3.5, seed=7)
    writer = found.begin_run(role, SUBJECT, facts, POINTS)
    given = write_steps(writer, steps, seed)
    if finish:
        writer.finish()
    return given


def mean64(given, point):
    """Mean x² by channel of everything put in, float64."""
    rows = torch.cat([step[point].double().reshape(-1, WIDTH[point]) for step in given])
    return rows.square().mean(0), len(rows)
