import torch
from torch.nn.functional import normalize

from teachclip.models.clip import frame_features, load_clip, text_features


class MeanTeacher(torch.nn.Module):
    """CLIP of any size: a video is the mean of its frames."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    @classmethod
    def from_source(cls, checkpoint):  # a file, a folder or a hub id
        return cls(load_clip(checkpoint))

    def encode_texts(self, input_ids, attention_mask):  # {name: (texts, ...)}: what scoring needs of a text
        return {"text": normalize(text_features(self.clip, input_ids, attention_mask), dim=-1)}

    def encode_videos(self, pixel_values, frame_mask):  # {name: (videos, ...)}
        return {"frames": normalize(frame_features(self.clip, pixel_values), dim=-1), "mask": frame_mask}

    def score(self, texts, videos):  # (texts, videos), logits
        frames = videos["frames"] * videos["mask"][:, :, None]
        return self.clip.logit_scale.exp() * texts["text"] @ normalize(frames.sum(dim=1), dim=-1).T

    def frame_relevance(self, texts, videos):  # (pairs, frames) of aligned pairs, rows sum to 1
        cosines = (texts["text"][:, None] * videos["frames"]).sum(dim=-1)
        return cosines.masked_fill(~videos["mask"], -torch.inf).softmax(dim=-1)
