import pytest
import torch

from supmim_scale.errors import UserError
from supmim_scale.models import targets

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_patchify_reads_patches_row_by_row_and_is_undone():
    patches = targets.patchify(IMAGES, 8)
    assert torch.equal(patches[1, 5].view(3, 8, 8), IMAGES[1, :, 8:16, 8:16])
    assert torch.equal(targets.unpatchify(patches, 8), IMAGES)


def test_pixel_targets_are_normalised_and_paint_the_image_back():
    target = targets.PixelTarget(8)
    values = target(IMAGES)
    assert values.shape == (4, 16, target.out_features)
    assert values.mean(-1).abs().max() < 1e-5
    assert (values.var(-1) - 1).abs().max() < 1e-3
    assert torch.allclose(target.pictures(IMAGES, values), IMAGES, atol=1e-5)


def test_codebook_ids_are_the_nearest_centres():
    target = targets.fit_codebook(IMAGES, 8, size=6, seed=0)
    patches = targets.normalised(targets.patchify(IMAGES, 8))[0]
    expected = torch.cdist(patches, target.centres_PV.expand(4, -1, -1)).argmin(-1)
    assert torch.equal(target(IMAGES), expected)
    assert target.out_features == 6


def test_a_codebook_survives_its_file(tmp_path):
    target = targets.fit_codebook(IMAGES, 8, size=6, seed=0)
    target.save(tmp_path / "c.safetensors")
    again = targets.CodebookTarget.load(tmp_path / "c.safetensors", 8)
    assert torch.equal(again.centres_PV, target.centres_PV)
    with pytest.raises(UserError, match="of the patch size"):
        targets.CodebookTarget.load(tmp_path / "c.safetensors", 4)


def test_more_centres_than_patches_are_refused():
    with pytest.raises(UserError, match=r"mim\.codebook_size"):
        targets.fit_codebook(IMAGES, 8, size=65, seed=0)


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory):
    """A small VQGAN that halves twice, as a diffusers folder."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        num_vq_embeddings=32,
        vq_embed_dim=4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    folder = tmp_path_factory.mktemp("vqgan")
    model.save_pretrained(folder, safe_serialization=True)
    return model.eval(), folder


def test_vqgan_codes_are_the_models_own_one_a_patch(vqgan):
    model, folder = vqgan
    target = targets.VqganTarget(str(folder), grid=4, mean=0.5, std=0.5)
    codes = target(IMAGES)
    assert codes.shape == (4, 16)
    assert target.out_features == 32
    # 32 px in patches of 8 become 16 px for a model that halves twice
    small = torch.nn.functional.interpolate(IMAGES, (16, 16), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = model.quantize(model.encode(small).latents)[2][2].reshape(4, -1)
    assert torch.equal(codes, expected)
    logits = torch.nn.functional.one_hot(codes, 32).float()
    assert target.pictures(IMAGES, logits).shape == IMAGES.shape


def test_a_folder_without_a_vqgan_is_refused(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(UserError, match=r"mim\.vqgan"):
        targets.VqganTarget(str(tmp_path), grid=4, mean=0.5, std=0.5)
