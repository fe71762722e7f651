"""Token ids that the model has no embedding for."""

from collections.abc import Sequence

from transformers import Trainer

from sdpo_plugin.errors import DataError
from sdpo_plugin.host.data.columns import largest_id
from sdpo_plugin.host.data.heldout import merged
from sdpo_plugin.host.data.tokenized import TokenizedSource
from sdpo_plugin.host.engines.weights import whole_size


def check_vocabulary(trainer: Trainer, sources: Sequence[TokenizedSource]) -> None:
    """Refuse rows with token ids that the model has no embedding for; on a GPU they end in an assertion of the device.

    Raises:
        DataError: it names the set, the id and the size of the embedding.
    """
    size = whole_size(trainer.model.get_input_embeddings().weight)[0]
    heldout = merged(source.heldout for source in sources)
    sets = {source.name: source.train for source in sources} | {f"held-out {name}": s for name, s in heldout.items()}
    for name, rows in sets.items():
        largest = largest_id(rows)
        if largest >= size:
            raise DataError(
                f"{name}: a row has token id {largest}, and the model has embeddings for {size} tokens: the tokenizer "
                "is larger than the model; set tokenizer_config to the model's own tokenizer, or enlarge the "
                "embeddings (resize_token_embeddings_to_32x: true)."
            )
