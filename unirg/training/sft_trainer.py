"""TRL's SFT trainer on packed batches, prepared in a thread while the step before is computed.

Beside TRL's: batches of `packing` in place of padded ones; the loss is the mean over all completion tokens
of the optimiser step, over ranks and micro-batches; what a step read, and how long it waited for that, is
logged. The order of the data, the optimiser and everything else are TRL's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from unirg.training import packing
from unirg.training.data import Examples
from unirg.training.packing import Encoder

Batch = dict[str, Any]


class PackedSFTTrainer(SFTTrainer):
    """SFT over `Examples` with completions, an image in each (a rank without one would stop ZeRO).

    Logged with the loss of each step, over all ranks: `tokens` (without padding), `completion_tokens` (that
    bear loss), `images`, `padding_share` (of all places in the batches), and `data_wait_s`, the seconds that
    the rank which waited longest stood still for its data.
    """

    def __init__(self, *given: Any, examples: Examples, packed: bool, **options: Any) -> None:
        """
        Args:
            packed: batches without padding, for a model that `packing.use` prepared; otherwise samples of
                like length make a padded batch.
        """
        self.examples, self.packed = examples, packed
        self.encoder = Encoder(options["processing_class"])
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._reading: Iterator[Future[Batch]] | None = None
        self._ahead: deque[Future[Batch]] = deque()
        self._counted = [0.0] * 5
        super().__init__(*given, train_dataset=examples.numbers(), data_collator=self._begin, **options)
        self.model_accepts_loss_kwargs = True  # else each micro-batch's loss is divided by their number

    def close(self) -> None:
        """End the thread, whatever it still had to prepare."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, rows: Sequence[Mapping[str, int]]) -> Future[Batch]:
        """As the loader's collator: the batch is prepared in the thread."""
        return self._pool.submit(self._prepared, [row["number"] for row in rows])

    def _prepared(self, numbers: Sequence[int]) -> Batch:
        samples = [self.encoder(self.examples[number]) for number in numbers]
        if self.packed:
            return packing.pack(samples, self.model.config)
        tokenizer = self.encoder.processor.tokenizer
        return packing.pad(samples, tokenizer.pad_token_id, self.model.config.image_token_id)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Future[Batch]], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of this optimiser step, and how many completion tokens all ranks' have together.

        Those of the next step are begun too. Reading ahead draws no random number: the order of an epoch is
        drawn at its first batch.
        """
        if epoch_iterator is not self._reading:
            self._reading = epoch_iterator
            self._ahead.clear()
        while len(self._ahead) < max(2 * num_batches, 3):
            begun = next(epoch_iterator, None)
            if begun is None:
                break
            self._ahead.append(begun)
        started = time.perf_counter()
        batches = [self._ahead.popleft().result() for _ in range(min(num_batches, len(self._ahead)))]
        waited = time.perf_counter() - started
        counts = [_counts(batch) for batch in batches]
        for place, amount in enumerate([*map(sum, zip(*counts, strict=True)), waited]):
            self._counted[place] += amount
        scored = torch.tensor(sum(count[1] for count in counts), device=device)
        return batches, self.accelerator.gather(scored).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """This micro-batch's part of the mean over the step's completion tokens, times the ranks.

        (The gradients of the ranks are averaged.)
        """
        if not self.packed:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return packing.loss(model, inputs) / num_items_in_batch * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was read since the last entry."""
        if "loss" in logs:
            mine = torch.tensor([self._counted], dtype=torch.float64, device=self.accelerator.device)
            ranks = self.accelerator.gather(mine)
            tokens, completion, images, places, _ = (int(amount) for amount in ranks.sum(0).tolist())
            logs |= {"tokens": tokens, "completion_tokens": completion, "images": images}
            logs |= {"padding_share": 1 - tokens / places, "data_wait_s": round(ranks[:, -1].max().item(), 4)}
            self._counted = [0.0] * 5
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        if self.packed:
            return super()._get_train_sampler(train_dataset)
        merge = self.encoder.processor.image_processor.merge_size
        image = self.encoder(self.examples[0]).grids[0].prod() // merge**2
        return ByLength(
            self.examples.lengths(int(image)),
            # An optimiser step's: the order stays when another number of processes goes on.
            self.args.train_batch_size
            * self.accelerator.num_processes
            * self.args.gradient_accumulation_steps,
            self.args.seed,
            lambda: int(self.state.epoch or 0),
        )


class ByLength(Sampler[int]):
    """Each epoch in another order, where neighbours are of like length.

    The order depends on the seed and the epoch alone: all ranks agree on it, and so does a training that goes
    on.
    """

    def __init__(self, lengths: Sequence[int], together: int, seed: int, epoch: Callable[[], int]) -> None:
        """
        Args:
            together: items that are computed at the same time, over all ranks.
            epoch: the present one.
        """
        self.lengths, self.together, self.seed, self.epoch = list(lengths), together, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.together, generator=chance))


def _counts(batch: Batch) -> tuple[int, int, int, int]:
    """Tokens without padding, completion tokens, images, places."""
    images, places = len(batch["image_grid_thw"]), batch["input_ids"].numel()
    if "lengths" in batch:
        return places, len(batch["targets"]), images, places
    return int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum()), images, places
