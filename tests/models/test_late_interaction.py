import torch
from tiny_models import tiny_clip
from torch.nn.functional import normalize

from teachclip.models.late_interaction import LateInteraction


def test_a_video_is_as_close_as_its_closest_valid_frame():
    backbone = tiny_clip()
    scorer = LateInteraction(backbone)
    text, frames = torch.randn(3, 16), torch.randn(2, 4, 16)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    with torch.no_grad():
        scores = scorer.score(scorer.texts_from_features(text), scorer.videos_from_features(frames, mask))
    cosines = normalize(text, dim=-1) @ normalize(frames, dim=-1).transpose(1, 2)
    scale = backbone.logit_scale.exp().item()
    torch.testing.assert_close(scores[:, 0], scale * cosines[0].amax(dim=-1))
    torch.testing.assert_close(scores[:, 1], scale * cosines[1, :, :2].amax(dim=-1))
