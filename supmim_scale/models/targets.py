"""What the decoder has to reconstruct: images to patch targets, and predictions to pictures.

A target is kept outside the trained module: it has no trainable parameter, ZeRO must not
partition it, and the step receives its output as data.
"""

import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from supmim_scale.errors import UserError
from supmim_scale.files.tensors import write_tensors

_EPS = 1e-6  # added to the patch variance, as in MAE's norm_pix_loss


class PatchTarget(Protocol):
    """A reconstruction target."""

    out_features: int

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """(B, N, P) values or (B, N) code ids of all patches; never takes a gradient."""
        ...

    def pictures(self, images_BCHW: Tensor, pred_BNP: Tensor) -> Tensor:
        """(B, C, H, W) pictures of predictions for all patches, in the images' value range."""
        ...


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """(B, N, C*p*p) patches in row-major order."""
    return F.unfold(images_BCHW.float(), patch_size, stride=patch_size).transpose(1, 2)


def unpatchify(patches_BNP: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify` for a square image."""
    side = round(patches_BNP.shape[1] ** 0.5) * patch_size
    return F.fold(patches_BNP.transpose(1, 2), side, patch_size, stride=patch_size)


def normalised(patches_BNP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(patches of zero mean and unit variance, mean, standard deviation), over a patch's values."""
    mean_BN1 = patches_BNP.mean(dim=-1, keepdim=True)
    std_BN1 = (patches_BNP.var(dim=-1, keepdim=True) + _EPS).sqrt()
    return (patches_BNP - mean_BN1) / std_BN1, mean_BN1, std_BN1


class PixelTarget:
    """Pixels of a patch, normalised by the patch's own mean and deviation (MAE)."""

    def __init__(self, patch_size: int) -> None:
        self.patch_size = patch_size
        self.out_features = 3 * patch_size**2

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """(B, N, P) normalised pixels."""
        return normalised(patchify(images_BCHW, self.patch_size))[0]

    @torch.no_grad()
    def pictures(self, images_BCHW: Tensor, pred_BNP: Tensor) -> Tensor:
        """Predictions with the true patch's mean and deviation put back."""
        _, mean_BN1, std_BN1 = normalised(patchify(images_BCHW, self.patch_size))
        return unpatchify(pred_BNP.float() * std_BN1 + mean_BN1, self.patch_size)


class CodebookTarget:
    """Nearest of P k-means centres of normalised patches: a discrete token without weights."""

    def __init__(self, centres_PV: Tensor, patch_size: int) -> None:
        self.patch_size = patch_size
        self.centres_PV = centres_PV
        self.out_features = len(centres_PV)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """(B, N) ids of the nearest centre."""
        patches_BNV, _, _ = normalised(patchify(images_BCHW, self.patch_size))
        self.centres_PV = self.centres_PV.to(patches_BNV.device)
        # |x - c|^2 without |x|^2, which does not change the nearest
        half_P = self.centres_PV.square().sum(dim=1) / 2
        return (patches_BNV @ self.centres_PV.T - half_P).argmax(dim=-1)

    @torch.no_grad()
    def pictures(self, images_BCHW: Tensor, pred_BNP: Tensor) -> Tensor:
        """The most likely centre with the true patch's mean and deviation put back."""
        _, mean_BN1, std_BN1 = normalised(patchify(images_BCHW, self.patch_size))
        centres_BNV = self.centres_PV.to(pred_BNP.device)[pred_BNP.argmax(dim=-1)]
        return unpatchify(centres_BNV * std_BN1 + mean_BN1, self.patch_size)

    def save(self, path: Path) -> None:
        """Write the centres as safetensors."""
        write_tensors({"centres": self.centres_PV.cpu()}, path)

    @classmethod
    def load(cls, path: Path, patch_size: int) -> "CodebookTarget":
        """Centres written by `save`. Raises `UserError` if the file is none."""
        values = 3 * patch_size**2
        try:
            centres_PV = load_file(path)["centres"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(str(path), str(error), "a codebook", "fit it again") from None
        if centres_PV.shape[1] != values:
            found = f"centres of {centres_PV.shape[1]} values"
            raise UserError(str(path), found, f"{values}, of the patch size", "fit it again")
        return cls(centres_PV, patch_size)


def fit_codebook(images_BCHW: Tensor, patch_size: int, size: int, seed: int) -> CodebookTarget:
    """k-means (scikit-learn, mini-batch, k-means++) over the images' normalised patches.

    Raises `UserError` where there are fewer patches than centres.
    """
    from sklearn.cluster import MiniBatchKMeans

    patches_XV = normalised(patchify(images_BCHW, patch_size))[0].flatten(0, 1)
    if len(patches_XV) < size:
        raise UserError(
            "mim.codebook_size",
            f"{size} centres for {len(patches_XV)} patches",
            "fewer centres than patches",
            "lower mim.codebook_size or raise mim.codebook_images",
        )
    means = MiniBatchKMeans(size, random_state=seed, n_init=1, batch_size=4096, max_iter=20)
    means.fit(patches_XV.numpy())
    return CodebookTarget(torch.from_numpy(means.cluster_centers_).float(), patch_size)


class VqganTarget:
    """Codes of a frozen VQGAN (a diffusers `VQModel`) with one code a patch.

    The same crop is resized so that the VQGAN's grid equals the patches': 224 px in patches of
    14 become 256 px for a VQGAN that halves four times.
    """

    def __init__(self, folder: str, grid: int, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self._model = _load_vqgan(folder)
        self._side = grid * 2 ** (len(self._model.config.block_out_channels) - 1)
        self.out_features = int(self._model.config.num_vq_embeddings)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """(B, N) code ids."""
        self._model.to(images_BCHW.device)
        latents = self._model.encode(self._resized(images_BCHW)).latents
        codes = self._model.quantize(latents)[2][2]
        return codes.reshape(len(images_BCHW), -1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def pictures(self, images_BCHW: Tensor, pred_BNP: Tensor) -> Tensor:
        """The VQGAN's decoding of the most likely codes."""
        grid = round(pred_BNP.shape[1] ** 0.5)
        shape = (len(pred_BNP), grid, grid, self._model.config.vq_embed_dim)
        latents = self._model.quantize.get_codebook_entry(pred_BNP.argmax(dim=-1).flatten(), shape)
        decoded = self._model.decode(latents, force_not_quantize=True).sample
        unit = F.interpolate(decoded / 2 + 0.5, images_BCHW.shape[-2:], mode="bicubic")
        return (unit - self.mean) / self.std

    def _resized(self, images_BCHW: Tensor) -> Tensor:
        unit = images_BCHW.float() * self.std + self.mean
        return F.interpolate(unit, (self._side, self._side), mode="bicubic", antialias=True) * 2 - 1


def require_vqgan_folder(folder: str | None) -> None:
    """Raise `UserError` unless `folder` looks like a saved diffusers model."""
    if folder is None or not (Path(folder) / "config.json").is_file():
        fix = "point mim.vqgan at a folder with config.json and safetensors"
        raise UserError("mim.vqgan", f"no config.json in {folder}", "a diffusers VQModel", fix)


def num_vqgan_codes(folder: str | None) -> int:
    """Entries of a saved VQGAN's codebook. Raises `UserError` where the folder is none."""
    require_vqgan_folder(folder)
    assert folder is not None
    content = json.loads((Path(folder) / "config.json").read_text())
    return int(content["num_vq_embeddings"])


def _load_vqgan(folder: str):  # type: ignore[no-untyped-def]
    require_vqgan_folder(folder)
    try:
        from diffusers import VQModel
    except ImportError:
        raise UserError(
            "mim.target",
            "vqgan without the diffusers package",
            "it installed",
            "pip install 'supmim_scale[vqgan]'",
        ) from None
    try:
        model = VQModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        what = " ".join(str(error).split())[:200]
        fix = "point mim.vqgan at a folder with config.json and safetensors"
        raise UserError(f"mim.vqgan {folder}", what, "a diffusers VQModel", fix) from None
    return model.eval().requires_grad_(False)
