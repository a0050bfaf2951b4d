"""What LoRAs do to each other, from their files alone: no weight of the base is read, no full delta is formed.

    layer.py      the deltas of one tensor, side by side          exact.py     norms, inner products, overlap, from factors
    sampled.py    sign conflict on seeded rows                     estimate.py  excess conflict over many layers, with its error
    section.py    the "conflicts" section of the report            shift.py    in units of ‖W‖, where that is known
    run.py        all layers of a plan
"""
