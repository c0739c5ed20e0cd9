"""What a stage's configuration says of the judge; a stage that asks one inherits these fields."""

from __future__ import annotations

import os

from pydantic import Field

from unirg.config import Config, operational
from unirg.metrics.chexprompt import Judge
from unirg.metrics.judge_endpoint import Budget


class JudgeSettings(Config):
    """Who counts errors under CheXprompt, how it is asked, and what it may cost."""

    judge_model: str | None = None
    """Name of the model, on Azure of the deployment, shown beside its numbers; None: no judge."""
    judge_temperature: float | None = Field(default=0.0, ge=0)
    """Sampling temperature (CheXprompt: 0); None leaves it out, for a model that refuses it."""
    judge_top_p: float | None = Field(default=0.9, gt=0, le=1)
    """Nucleus of the sampling (CheXprompt: 0.9); None leaves it out."""
    judge_max_tokens: int = Field(default=1024, ge=128)
    """Of one answer, which takes about 150; a model that reasons counts its thoughts too."""
    judge_url: str = operational("")
    """OpenAI base URL up to `/v1`, or the Azure resource. Its key is read from UNIRG_JUDGE_API_KEY."""
    judge_api_version: str | None = operational(None)
    """Version of Azure's API; None: not Azure."""
    judge_concurrency: int = operational(16, ge=1)
    """Requests to the judge under way at once."""
    judge_timeout: float = operational(120.0, gt=0)
    """Seconds for one answer of the judge."""
    judge_calls: int | None = operational(None, ge=1)
    """Requests at most; pairs that are left are missing, with this as the reason. None: no limit."""
    judge_tokens: int | None = operational(None, ge=1)
    """Input and output tokens at most."""
    judge_money: float | None = operational(None, gt=0)
    """Money at most, in the currency of the prices."""
    judge_input_price: float | None = operational(None, ge=0)
    """Price of a million input tokens."""
    judge_output_price: float | None = operational(None, ge=0)
    """Price of a million output tokens."""

    def judge(self) -> Judge | None:
        """The judge's client; None where no model is named.

        Raises:
            UserError: a budget in money without prices.
        """
        if self.judge_model is None:
            return None
        return Judge(
            self.judge_url,
            self.judge_model,
            api_key=os.environ.get("UNIRG_JUDGE_API_KEY", "none"),
            concurrency=self.judge_concurrency,
            timeout=self.judge_timeout,
            api_version=self.judge_api_version,
            budget=Budget(
                self.judge_calls,
                self.judge_tokens,
                self.judge_money,
                self.judge_input_price,
                self.judge_output_price,
            ),
            temperature=self.judge_temperature,
            top_p=self.judge_top_p,
            max_tokens=self.judge_max_tokens,
        )
