"""Where the tokens of the Style Transformer look."""

import pytest
import torch

from stx.files.errors import InputError
from stx.style_transformer import StyleTransformer


def test_attention_is_a_map_for_each_token_and_even_where_queries_are_nothing():
    """Without queries all scores are zero, so that each of 4 x 6 places has 1 / 24."""
    torch.manual_seed(0)
    net = StyleTransformer(num_ws=5, n_mlp=2, widths=(8, 8, 8, 16), units=(1, 1, 1, 1), queries=7).eval()
    image = torch.randn(2, 3, 64, 96)
    maps = net.attention(image, "coarse")
    assert maps.shape == (2, 5, 4, 6)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 5))
    assert maps.std() > 1e-4
    cross = net.encoder.transformerlayer_coarse.multihead_attn
    with torch.no_grad():
        cross.in_proj_weight[:16] = 0
        cross.in_proj_bias[:16] = 0
    torch.testing.assert_close(net.attention(image, "coarse"), torch.full((2, 5, 4, 6), 1 / 24))
    assert net.attention(image, "fine").shape == (2, 5, 16, 24)
    with pytest.raises(InputError, match="stage 'finest': expected one of coarse, medium, fine"):
        net.attention(image, "finest")
