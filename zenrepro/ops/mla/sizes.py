"""The widths of latent attention that every kernel here is written for (DeepSeek-V2's)."""

from __future__ import annotations

LATENT = 512  # compressed keys and values of a token, shared by all heads
ROTARY = 64  # the part of a key that carries the position, shared by all heads too
ROW = LATENT + ROTARY  # a row of the cache; the width of an absorbed query
NOPE = 128  # the part of a head's query and key without position
QUERY = NOPE + ROTARY  # a head's query before absorption
VALUE = 128  # a head's value
PAGE = 64  # rows of a page of the cache
MOST_QUERIES = 8  # query tokens of a decode step
MOST_HEADS = 128

# A row of the FP8 cache: the latent part in e4m3, one fp32 scale a group, the rotary part in bf16.
GROUP = 128
SCALES = LATENT // GROUP
FP8_ROW_BYTES = LATENT + 4 * SCALES + 2 * ROTARY

# 1 / sqrt of the width that a score sums over before absorption, which does not change scores.
SCALE = QUERY**-0.5
