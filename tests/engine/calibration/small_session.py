"""A session that is recorded here through the recorder, as it is while sampling: some runs of a step or more, of four layers."""
import torch
from wan22_master.engine.calibration import log
from wan22_master.engine.calibration.points import points_of
from wan22_master.engine.calibration.run import RunFacts
from wan22_master.engine.calibration.session import Session
from wan22_master.engine.calibration.statistics import Recorder
from wan22_master.engine.calibration.subject import Subject

LAYERS = ["blocks.0.self_attn.q", "blocks.0.self_attn.k", "blocks.0.ffn.0", "blocks.0.ffn.2"]
POINTS = points_of(LAYERS)
SUBJECT = Subject("header:1", "wan.safetensors", stored_as="Q8_0")


def record(session: Session, role: str, sizes: list[float], *, prompt: str, parts=("cond", "uncond"), spoil=None) -> str:
    """One run of a step for each of `sizes`, the largest |x| of its inputs; ffn.2 is never seen. Returns the lines of its log."""
    writer = session.begin_run(role, SUBJECT, RunFacts(prompt, steps=len(sizes)), POINTS)
    recorder, told = Recorder(POINTS, seed=writer.seed, tokens=writer.tokens), ""
    for step, size in enumerate(sizes):
        recorder.begin(1.0 - step / 10, parts)
        for number, point in enumerate(list(POINTS)[:2]):
            x = torch.randn(len(parts), 8, 32, generator=torch.Generator().manual_seed(step * 7 + number)).clamp(-4, 4)
            x[-1, 3, 5] = size * (number + 1) * 4
            if spoil == (step, point):
                x[0, 0, 0] = torch.nan
            recorder.see(point, x)
        step_record = recorder.take(step)
        told += log.lines(step_record, POINTS)
        writer.write_step(step_record)
    writer.finish()
    return told
