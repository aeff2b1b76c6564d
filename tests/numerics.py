"""Every tolerance of the tests, with its reason. Errors are max |a - b| / max |b| unless a name says otherwise."""

from __future__ import annotations

from torch import Tensor

# One forward in float32: the same products in another order of summation.
FORWARD_ERROR = 1e-5
# A derivative against a central difference of step 1e-4 in float64, where parts of the host stay in float32: its rounding over
# the step, of a loss near 1 and a derivative near 0.05.
SLOPE_ERROR = 1e-3
# A difference in one forward that cannot be rounding: ten times the largest that is taken for it.
NOT_ROUNDING = 1e-4
# A rollout feeds each chunk's rounding into the next ones.
ROLLOUT_ERROR = 1e-4
# Guidance of 5 multiplies the rounding between the two histories by 5, through every chunk.
GUIDANCE_ERROR = 1e-3
# Weights rounded once (half a unit in the last place: fp16 2^-12, bf16 2^-9, fp8 e4m3 2^-4), in a film of two chunks
# whose layers add up many of them with either sign; the errors are of the film's largest value.
FP16_WEIGHT_ERROR = 1e-3
BF16_WEIGHT_ERROR = 1e-2
FP8_WEIGHT_ERROR = 0.1
# Keys and values remembered in 8 bits (half a code of 127 of each token's largest number), read by a film of two layers.
EIGHT_BIT_FILM_ERROR = 1e-3
# Everything computed in bf16: each product is rounded to 2^-9, through every layer of the film.
BF16_COMPUTE_ERROR = 3e-2
# The same film at other times is equal in exact arithmetic, but queries and keys are turned by other angles before they
# are rounded to bf16: at most as much may change as bf16 changes against float32, where every product is rounded.
TIME_SHIFT_SHARE = 1.0
# Pictures of 0 to 1, absolute: the same operations in the same groups, so on one machine the bits are equal.
STREAMED_PICTURE_ERROR = 1e-5
# Standard deviation below which a decoded picture of random latents counts as flat, so that comparing it proves nothing.
NOT_FLAT = 0.01
# The worst round trip of the tiny VAE that still looks like its film (dB); the fit reaches about 33.
TINY_VAE_DB = 26.0
# The worst held-out half of a real clip (dB): 16 numbers a tile hold little of a video's detail; the fit reaches 20.5.
REAL_CLIP_DB = 19.0
# Mean (around 0) and deviation (around 1) of latents on a dozen unseen films: sampling error of so few films.
LATENT_STATISTICS_ERROR = 0.35
# The host's encoder against one matrix (dB, latents of +-3): the curvature left in its normalisation and SiLU.
MATRIX_PROBE_DB = 35.0
# Pictures of 0 to 1 drawn alone or among others: vector and scalar instructions round the last bit apart.
PICTURE_ROUNDING = 1e-5
# Cosine of a look with itself after the mean look was taken out of both: float32 sums over 12,000 numbers.
TRUE_LOOK = 0.9999
# A preview's mean distance from its picture, colours of 0 to 1: one linear map of 16 numbers reached 0.025 to 0.038, and
# that of HunyuanVideo's own VAE 0.47.
PREVIEW_ERROR = 0.06
# Flat grey of -1 to 1 through H.264 at a high quality: neighbouring pictures are 0.016 apart, 3 levels of 255 are 0.024.
CODED_GREY = 0.024
# Optical flow of a smooth surface moved by up to 2 pixels a picture, in pixels: quadratics are not sines.
FLOW_ERROR = 0.1
# Flow between equal pictures, in pixels: what reading them at rounded places leaves.
FLOW_ROUNDING = 1e-4
# Background (dB) where only the character differs: the last of its soft edge reaches out of its box.
SOFT_EDGE_DB = 50.0
# Kernels against float32 or better, in the norm of the whole result: at most twice what PyTorch loses in the same type
# (the rule of flash-attention's tests) ...
KERNEL_ERROR_FACTOR = 2.0
# ... and where PyTorch happens to lose next to nothing, as with a single key, one rounding of the result.
KERNEL_ERROR_ULPS = 1.0
# Log-sum-exp: scores of a few units summed in float32 ...
LSE_ERROR = 1e-5
# ... and for 16-bit types, where torch's CPU kernel takes a fast exponential: a part in ten thousand of the sum, far below
# the last place of the outputs that it weights.
HALF_LSE_ERROR = 1e-4
# Two merges in a row round a 16-bit output twice, in another place when they come in another order.
MERGE_ROUNDINGS = 2.0
# Shares of attention are means of a few hundred numbers in float32.
SHARE_ROUNDING = 1e-6
# Rounding to 8 bits moves a number by half a code; the last bits of scale and mean come on top.
CODE_ERROR = 0.501
# Gate logits end at 10, so an open gate is 1 - 5e-5 and a closed one 5e-5, in every layer and step of a film.
OPEN_GATE_ERROR = 1e-3
# The same sum in float32, in another order, or of keys that were turned first.
SAME_SUM = 1e-5

# Lightness (0 to 255) between neighbouring steps of the Memory Inspector's ramp: colours are rounded to whole bytes.
LIGHTNESS_STEP = 1.0
# The Memory Inspector shows a percentage with at least two digits that count (10.4 % as "10 %") ...
SHOWN_PERCENT = 0.05
# ... but nothing behind a hundredth of a percent.
SMALLEST_SHOWN_PERCENT = 5e-5
# Milliseconds for one draw of the Memory Inspector, 600 chunks x 40 layers: what the project promised.
DRAW_MILLISECONDS = 100.0
# How much more a character who was seen has to look like itself (cosine) than one of another film: an encoder that forgets gains
# nothing, the one that ships half a cosine.
RECALLED = 0.2


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest value of `b`, in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())
