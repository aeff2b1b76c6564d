"""A video codec found by linear algebra, written into the weights of the host's `WanVAE`.

Encoder: principal components of 2x2 pixels, of 2x2 of those and two moments, of 2x2 of those and two moments, and at
last the 16 that matter most. It needs no training, so latents are final before anything is trained. The decoder
goes the same way back by least squares.

The host's encoder ends in a normalisation and SiLU. Both are made almost linear: one channel is a large constant that
dominates the norm, and SiLU is used close to zero, where it halves its input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

LATENT_CHANNELS = 16
CONSTANT = 64.0
"""The channel that dominates every normalisation; features are of order 1."""
DECODER_CONSTANT = 16.0
"""The same in the decoder; smaller, so that the branches trained there see the picture."""
NEAR_ZERO = 0.05
"""Scale of what enters SiLU; at 0.05 its curvature is 40 dB below the signal."""
SPREAD = 0.5
"""Exponent of each component's standard deviation: 1 weighs errors as pixels do, 0 weighs all components alike."""


def _components(samples: Tensor, keep: int) -> Tensor:
    """The `keep` directions of largest energy of `samples` `[N, C]`: `[keep, C]`."""
    moments = samples.T.double() @ samples.double() / len(samples)
    _, vectors = torch.linalg.eigh(moments)
    largest: Tensor = vectors.flip(1).T[:keep].to(samples.dtype)
    return largest


def _hadamard(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def _fit_space(conv: Any, video: Tensor, keep: int) -> Tensor:
    """Write the best 2x2 merge of `video` `[N, C, T, H, W]` into a stride-2 convolution; returns what it makes of it.

    The last channel stays the constant.
    """
    n, c, t, h, w = video.shape
    tiles = video.reshape(n, c, t, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6)  # [N, T, H', W', C, 2, 2]
    basis = _components(tiles.reshape(-1, c * 4), keep).view(-1, c, 2, 2)
    basis = basis / 2.0  # keeps a flat picture at its own size from level to level
    conv.weight.zero_()
    conv.bias.zero_()
    conv.weight[: len(basis), :c, :2, :2] = basis
    conv.bias[-1] = CONSTANT
    merged = torch.einsum("nthwcij,kcij->nkthw", tiles, basis)
    return merged


def _fit_time(conv: Any, video: Tensor, keep: int) -> Tensor:
    """Write mean and main differences of two moments into a stride-2 time convolution; returns what it makes of `video`.

    The first moment has no partner and passes unchanged, so the means come first and differences are zero for it.
    """
    still = video.shape[1]
    first, early, late = video[:, :, :1], video[:, :, 1::2], video[:, :, 2::2]
    change = (late - early) / 2.0
    basis = _components(change.movedim(1, -1).reshape(-1, still), keep)
    conv.weight.zero_()
    conv.bias.zero_()
    identity = torch.eye(still)
    conv.weight[:still, :still, 1, 0, 0] = identity / 2
    conv.weight[:still, :still, 2, 0, 0] = identity / 2
    conv.weight[still : still + len(basis), :still, 1, 0, 0] = -basis / 2
    conv.weight[still : still + len(basis), :still, 2, 0, 0] = basis / 2
    conv.bias[-1] = CONSTANT
    changes = torch.einsum("ncthw,kc->nkthw", change, basis)
    pairs = torch.cat([(early + late) / 2, changes], dim=1)
    return torch.cat([functional.pad(first, (0, 0, 0, 0, 0, 0, 0, len(basis))), pairs], dim=2)


def _silence(part: nn.Module) -> None:
    """Make every residual branch and attention add nothing, and every shortcut copy its channels."""
    for name, parameter in part.named_parameters():
        if ".residual.6." in name or ".proj." in name or name.endswith("shortcut.bias"):
            parameter.zero_()
        elif name.endswith("shortcut.weight"):
            parameter.zero_()
            shared = min(parameter.shape[:2])
            parameter[:shared, :shared, 0, 0, 0] = torch.eye(shared)
            # The constant moves from the last channel of the narrow side to the last of the wide side.
            parameter[shared - 1, shared - 1] = 0
            parameter[-1, shared - 1, 0, 0, 0] = 1.0


class _Nothing(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        """Zero, of no size of its own."""
        return features.new_zeros(())


def drop_silent_branches(vae: Any) -> None:
    """Take the residual branches that add nothing out of a host `WanVAE`: the same bits in a tenth of the time.

    Their weights are gone then, so this is for a VAE that only runs. Branches that add something stay.
    """
    for module in vae.modules():
        if hasattr(module, "residual") and not any(weight.any() for weight in module.residual[-1].parameters()):
            module.residual = nn.Sequential(_Nothing())


def _energy_scale(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, directions and standard deviations of `samples` `[N, C]`, the largest first."""
    mean = samples.mean(0)
    centred = (samples - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(samples))
    deviations = values.flip(0)[:LATENT_CHANNELS].clamp_min(1e-12).sqrt()
    return mean, vectors.flip(1).T[:LATENT_CHANNELS].to(samples.dtype), deviations.to(samples.dtype)


@torch.no_grad()
def fit_linear_encoder(vae: Any, video: Tensor, latent_mean: Tensor, latent_std: Tensor) -> None:
    """Write a linear encoder for `video` `[N, 3, 4n+1, H, W]` in -1..1 into the host `WanVAE`.

    Latents get the mean and standard deviation that the host expects of Wan (`[1, 16, 1, 1, 1]` each) in every channel.
    """
    encoder = vae.encoder
    _silence(encoder)
    dim = encoder.conv1.weight.shape[0]
    encoder.conv1.weight.zero_()
    encoder.conv1.bias.zero_()
    encoder.conv1.weight[:3, :, -1, 1, 1] = torch.eye(3)
    encoder.conv1.bias[-1] = CONSTANT
    down = [layer for layer in encoder.downsamples if hasattr(layer, "resample")]

    half = _fit_space(down[0].resample[1], video, min(12, dim - 1))
    wide = 2 * dim - 1
    features = _fit_space(down[1].resample[1], half, wide - wide // 4)
    quarter = _fit_time(down[1].time_conv, features, wide // 4)
    wide = 4 * dim - 1
    features = _fit_space(down[2].resample[1], quarter, wide - wide // 3)
    features = _fit_time(down[2].time_conv, features, wide // 3)  # [N, wide, T, H/8, W/8]

    samples = features.movedim(1, -1).reshape(-1, features.shape[1])
    mean, directions, deviations = _energy_scale(samples)
    softened = deviations**SPREAD
    softened = softened / softened.square().mean().sqrt()
    mix = _hadamard(LATENT_CHANNELS)  # equal deviation in every channel, whatever the components' own
    project = mix @ (directions * (softened / deviations)[:, None])  # [16, wide], unit variance
    scale, shift = latent_std.flatten(), latent_mean.flatten()

    norm, head = encoder.head[0], encoder.head[2]
    count = features.shape[1]
    norm.gamma.fill_(NEAR_ZERO * CONSTANT / norm.scale)
    norm.gamma[-1] = 0.0
    head.weight.zero_()
    head.bias.zero_()
    head.weight[:LATENT_CHANNELS, :count, -1, 1, 1] = project * (2.0 / NEAR_ZERO)
    head.bias[:LATENT_CHANNELS] = -project @ mean
    vae.conv1.weight.zero_()
    vae.conv1.bias.zero_()
    vae.conv1.weight[:LATENT_CHANNELS, :LATENT_CHANNELS, 0, 0, 0] = torch.diag(scale)
    vae.conv1.bias[:LATENT_CHANNELS] = shift


class Footage(NamedTuple):
    """Videos that the decoder is fitted on, and how much each of their pixels counts."""

    video: Tensor  # [N, 3, 4n+1, H, W] in -1..1
    weight: float


class Lesson(NamedTuple):
    """What an enlarging layer is given, what it should make of it, and how much each number counts."""

    features: Tensor  # [N, C, T, h, w]
    targets: Tensor  # [N, K, T', 2h, 2w]
    weight: float


def _pictures(video: Tensor) -> Tensor:
    return video.transpose(1, 2).flatten(0, 1)  # [N * T, C, h, w]


def _doubled_patches(features: Tensor) -> Tensor:
    """What a 3x3 convolution sees on `features` `[M, C, h, w]` doubled in size: `[M * 4hw, 9C + 1]`, ones at the end."""
    doubled = functional.interpolate(features, scale_factor=2, mode="nearest-exact")
    patches = functional.unfold(doubled, 3, padding=1).transpose(1, 2).flatten(0, 1)
    return torch.cat([patches, torch.ones(len(patches), 1)], dim=1)


def _fit_conv(conv: Any, lessons: Sequence[Lesson]) -> None:
    """Write into a 3x3 convolution the least-squares way from doubled features to targets of twice their size."""
    count, channels = lessons[0].targets.shape[1], lessons[0].features.shape[1]
    size = 9 * channels + 1
    moments, products = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, count, dtype=torch.float64)
    for lesson in lessons:
        pictures = zip(_pictures(lesson.features).split(32), _pictures(lesson.targets).split(32), strict=True)
        for some, wanted in pictures:
            patches = _doubled_patches(some)
            moments += lesson.weight * (patches.T @ patches).double()
            products += lesson.weight * (patches.T @ wanted.permute(0, 2, 3, 1).flatten(0, 2)).double()
    ridge = 1e-6 * moments.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    solution = torch.linalg.solve(moments + ridge, products).to(conv.weight.dtype)  # [9C + 1, K]
    conv.weight.zero_()
    conv.bias.zero_()
    conv.weight[:count, :channels] = solution[:-1].T.reshape(count, channels, 3, 3)
    conv.bias[:count] = solution[-1]


def _split_halves(time_conv: Any, features: Tensor) -> Tensor:
    """Let a time convolution hand its input to the early half in the first channels and to the late half in the others.

    So the convolution after it can treat the halves apart. `features` `[N, C, T, h, w]` become `[N, 2C, 2T-1, h, w]`;
    the first moment is not halved and stands in the first channels.
    """
    channels, wide = features.shape[1], time_conv.weight.shape[1]
    time_conv.weight.zero_()
    time_conv.bias.zero_()
    identity = torch.eye(channels)
    time_conv.weight[:channels, :channels, -1, 0, 0] = identity
    time_conv.weight[wide + channels : wide + 2 * channels, :channels, -1, 0, 0] = identity
    early = functional.pad(features, (0, 0, 0, 0, 0, 0, 0, channels))
    late = functional.pad(features[:, :, 1:], (0, 0, 0, 0, 0, 0, channels, 0))
    pairs = torch.stack([early[:, :, 1:], late], dim=3).flatten(2, 3)
    return torch.cat([early[:, :, :1], pairs], dim=2)


def _upsample(layer: Any, lessons: Sequence[Lesson]) -> list[Tensor]:
    """Fit one of the host's enlarging layers; returns what it makes of the features of each lesson."""
    if layer.mode == "upsample3d":
        lessons = [lesson._replace(features=_split_halves(layer.time_conv, lesson.features)) for lesson in lessons]
    conv = layer.resample[1]
    _fit_conv(conv, lessons)
    made = []
    for features, targets, _ in lessons:
        wide = functional.pad(_pictures(features), (0, 0, 0, 0, 0, conv.weight.shape[1] - features.shape[1]))
        large: Tensor = layer.resample(wide)[:, : targets.shape[1]]
        made.append(large.unflatten(0, (len(features), -1)).transpose(1, 2))
    return made


def _merged_space(conv: Any, video: Tensor) -> Tensor:
    # What the encoder makes of 2x2 pixels, without the constant in its last channel.
    kernel: Tensor = conv.weight[:-1, : video.shape[1], :2, :2]
    pictures = functional.conv2d(_pictures(video), kernel, stride=2)
    merged: Tensor = pictures.unflatten(0, (len(video), -1)).transpose(1, 2)
    return merged


def _merged_time(conv: Any, video: Tensor) -> Tensor:
    # The same of two moments; the first one passes as it is.
    pairs = functional.conv3d(video, conv.weight[:-1, : video.shape[1]], stride=(2, 1, 1))
    return torch.cat([video[:, :, :1], pairs], dim=2)


def _inner_levels(vae: Any, video: Tensor) -> tuple[Tensor, Tensor]:
    """What the encoder makes of `video` at half and at quarter size, the latter at half the frame rate as well."""
    first, second, _ = [layer for layer in vae.encoder.downsamples if hasattr(layer, "resample")]
    half = _merged_space(first.resample[1], video)
    return half, _merged_time(second.time_conv, _merged_space(second.resample[1], half))


@torch.no_grad()
def fit_linear_decoder(vae: Any, footage: Sequence[Footage], mean: Tensor, std: Tensor) -> None:
    """Write a linear decoder into the host `WanVAE`: each enlarging layer is the least-squares way to the next level.

    The levels are those of the VAE's own encoder, which must already be a linear one.
    """
    decoder = vae.decoder
    _silence(decoder)
    encoder = copy.deepcopy(vae)
    drop_silent_branches(encoder)
    features = [torch.cat([(encoder.encode(some) - mean) / std for some in video.split(1)]) for video, _ in footage]
    vae.conv2.weight.zero_()
    vae.conv2.weight[:, :, 0, 0, 0] = torch.diag(1 / std.flatten())
    vae.conv2.bias.copy_(-(mean / std).flatten())
    decoder.conv1.weight.zero_()
    decoder.conv1.bias.zero_()
    decoder.conv1.weight[:LATENT_CHANNELS, :LATENT_CHANNELS, -1, 1, 1] = torch.eye(LATENT_CHANNELS)
    first, second, last = [layer for layer in decoder.upsamples if hasattr(layer, "resample")]
    weights = [weight for _, weight in footage]
    levels = [_inner_levels(vae, video) for video, _ in footage]
    halves, quarters = [half for half, _ in levels], [quarter for _, quarter in levels]
    both_signs = [torch.cat([video, -video], dim=1) for video, _ in footage]
    for layer, targets in ((first, quarters), (second, halves), (last, both_signs)):
        features = _upsample(layer, [Lesson(*part) for part in zip(features, targets, weights, strict=True)])
    constant = last.resample[1].weight.shape[0] - 1
    last.resample[1].bias[constant] = DECODER_CONSTANT
    # SiLU(x) - SiLU(-x) = x: colours go through in both signs, the norm is held by the constant.
    norm, head = decoder.head[0], decoder.head[2]
    norm.gamma.fill_(DECODER_CONSTANT / norm.scale)
    head.weight.zero_()
    head.bias.zero_()
    head.weight[:, :3, -1, 1, 1] = torch.eye(3)
    head.weight[:, 3:6, -1, 1, 1] = -torch.eye(3)
