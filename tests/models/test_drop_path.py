import torch

from supmim_scale.build.model import recipe_model
from supmim_scale.config import load_config

SHAPE = ["model.width=32", "model.heads=2", "model.depth=3", "model.drop_path=0.5"]


def block_of(*options):
    """The last block, which drops half of the samples, in training."""
    model = recipe_model(load_config("smoke", [*SHAPE, *options, "mim.weight=0"]), 0)
    return model.train().encoder.blocks[-1]


def test_branches_are_computed_on_the_kept_samples_alone():
    block, seen = block_of("model.drop_path_kept=true"), []
    for branch in (block.attn, block.mlp):
        branch.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    block(torch.randn(8, 4, 32))
    assert seen == [4, 4]


def test_a_dropped_sample_passes_a_branch_unchanged_and_a_kept_one_gets_twice_of_it():
    block, tokens = block_of("model.drop_path_kept=true"), torch.randn(8, 4, 32)
    block.ls2 = torch.nn.Sequential()  # of the first branch alone
    block.mlp = torch.nn.Module()
    block.mlp.forward = torch.zeros_like
    out = block(tokens)
    branch = block.attn(block.norm1(tokens))
    is_kept = (out != tokens).flatten(1).any(dim=1)
    assert int(is_kept.sum()) == 4
    torch.testing.assert_close(out[is_kept], (tokens + 2 * branch)[is_kept])


def test_its_mean_over_draws_is_the_block_without_drop_path():
    block, tokens = block_of("model.drop_path_kept=true"), torch.randn(8, 4, 32)
    block.mlp = torch.nn.Module()
    block.mlp.forward = torch.zeros_like
    expected = block.eval()(tokens) - tokens
    block.train()
    mean = torch.stack([block(tokens) for _ in range(300)]).mean(dim=0) - tokens
    assert (mean - expected).abs().max() < 0.3 * expected.abs().max()
    assert (mean - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_in_evaluation_it_is_timms_block():
    ours, timms = block_of("model.drop_path_kept=true").eval(), block_of().eval()
    tokens = torch.randn(8, 4, 32)
    assert torch.equal(ours(tokens), timms(tokens))
