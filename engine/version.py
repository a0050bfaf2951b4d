"""The versions that stand in files and reports."""
ENGINE = "0.1.0"                                   # the pack's
MERGE = 3                                          # of the arithmetic: raised whenever the same inputs would give other bytes
