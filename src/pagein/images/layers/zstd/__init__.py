"""A zstd layer (RFC 8878), entered in the middle of its frames.

A layer is one frame of hundreds of megabytes, mostly, and no decoder begins anywhere but at its
start. But a frame is a row of blocks of at most 128 KiB, which begin at whole bytes. What a block
needs of those before it is little, and all of it can be given to an ordinary decoder, by what the
format calls a dictionary (RFC 8878 5), and by a few bytes put into the first blocks:

1. *Tables.* The Huffman tree of literals, and the three FSE tables of sequences, may be those of an
   earlier block (literals of type 3, "treeless"; mode 3, "repeat"). The first block behind the
   point that does so gets them: type 3 becomes type 2 with the tree behind the literals header,
   mode 3 becomes the mode of the block that gave the table, with its description. No table is
   understood, only copied; the sizes in two headers grow (`sections`, `patch`). A block that would
   become larger than a block may be cannot be entered; the next one can.
2. *Repeat offsets.* Three numbers that each sequence of each block may move. They are asked of the
   decoder: the blocks before the point are decoded with a window of labels, and behind them a block
   of one sequence copies from repeat offset 1, 2 or 3. What it copies tells the distance (`reps`).
   If blocks only ever swap what they were given, more blocks are decoded, as far back as need be.
3. *The window.* A block may refer to anything in the last megabytes, eight as a rule, but refers to
   little of it. What, is found with *stencils*: blocks with the same sequences, but all of whose
   literals are one blank byte. They are decoded with windows whose bytes are digits of their own
   place; what is not blank in the output came from the window, and says from where (`planes`). No
   match is shorter than three bytes, so it is enough to look at each third one. All else in the
   window is left zero.

The dictionary has the repeat offsets and the window, and tables that nobody uses; the header in
front of the patched blocks is our own. The first use of a point is when it is made: all output for
which the window can matter, as much as the window is long, is decoded once more with nothing but
the point, and compared; where no block refers to anything, the blocks that are changed. A point
that fails is dropped. So what this rests on is not the reasoning above but that comparison, and,
for whoever reads, the digests of the chunks in the index.

Why stencils: the literals of a block do not matter for what its sequences copy from where. Without
them there is no Huffman table to be patched, and what came from the window needs no second decoding
to be told from what did not. Why digits to the base of 255: the 256th byte is the blank.

`frames` finds blocks, `checkpoints` makes points of one, `unpacker` decides where; `decoder` reads
from a point on. `library` is the seam to the decoder. Figures: docs/zstd.md.
"""

from __future__ import annotations

from pagein.images.layers.zstd.decoder import ZstdDecoder
from pagein.images.layers.zstd.unpacker import ZstdUnpacker

__all__ = ["ZstdDecoder", "ZstdUnpacker"]
