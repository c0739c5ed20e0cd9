"""CheXbert's network (Smit et al., EMNLP 2020): BERT, and 14 linear heads on its first token.

Names of modules are those of the public checkpoint, so its tensors fit by name. A pooler, which the public
checkpoint holds and never uses, is not built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import BertConfig

CLASSES = (4,) * 13 + (2,)
"""Classes of each head; the last, No Finding, is blank or positive."""


class CheXbertNetwork(nn.Module):
    """Token ids in, logits of the 14 conditions out; trainable as it is."""

    def __init__(self, config: BertConfig) -> None:
        from transformers import BertModel

        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.linear_heads = nn.ModuleList(nn.Linear(config.hidden_size, classes) for classes in CLASSES)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Logits of each condition, 13 of (rows, 4) and one of (rows, 2), for ids of (rows, length)."""
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        return self.heads(self.dropout(hidden))

    def heads(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each condition from embeddings of (rows, width)."""
        return [head(embedding) for head in self.linear_heads]

    def embedding(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The last hidden state of the first token, (rows, width), for inference.

        Equal to the full forward, with less work: of the last layer only the first token is asked for, so
        its query, attention output and feed-forward are computed for that token alone; the other tokens
        give their keys and values.
        """
        hidden = self.bert.embeddings(input_ids=ids)
        bias = None
        if mask is not None:
            # Added to the attention's scores, which both of transformers' implementations understand.
            bias = torch.zeros_like(mask, dtype=hidden.dtype)[:, None, None, :]
            bias = bias.masked_fill(mask[:, None, None, :] == 0, torch.finfo(hidden.dtype).min)
        *layers, last = self.bert.encoder.layer
        for layer in layers:
            hidden = layer(hidden, bias)
        attention, first = last.attention.self, hidden[:, :1]
        query, key, value = (
            states.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for states in (attention.query(first), attention.key(hidden), attention.value(hidden))
        )
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended = last.attention.output(context.transpose(1, 2).flatten(2), first)
        return last.output(last.intermediate(attended), attended)[:, 0]
